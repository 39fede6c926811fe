//! What the tools do themselves.

mod broken_authority;
mod broken_store;
mod chaos;
mod keeps_promises;
