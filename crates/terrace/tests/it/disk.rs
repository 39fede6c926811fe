//! The disk tier: its settings, its bounds, and what it does with what it finds.
