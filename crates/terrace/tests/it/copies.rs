//! Copies between tiers lengthen no life and change no stamp.
