//! The stores that come with Terrace pass the kits for everybody's.
