//! What the tools do themselves.

#![expect(clippy::unwrap_used, reason = "helpers of tests are not themselves marked as tests")]

mod broken_authority;
mod broken_store;
mod chaos;
mod keeps_promises;
#[cfg(all(feature = "rig", unix))]
mod rig_cluster;
#[cfg(all(feature = "rig", unix))]
mod rig_proxy;
#[cfg(all(feature = "rig", unix))]
mod rig_script;
#[cfg(all(feature = "rig", unix))]
mod rig_sentinel;
#[cfg(all(feature = "rig", unix))]
mod rig_server;
mod shared_disk;
