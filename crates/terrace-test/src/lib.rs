//! What tests **of** and **with** the Terrace cache need.
//!
//! | you test | you need |
//! | --- | --- |
//! | what your service does as entries age | [`ManualClock`] |
//! | what lies below memory, and how often it is asked | [`MapStore`] |
//! | what your service does when a store fails, hangs, lags or lies | [`ChaosStore`] |
//! | a store or an authority of your own | [`conformance`] |
//! | what many tasks may see of keys that change | [`history`] |
//! | callers that are dropped half-way | [`sweep`] |
//! | what has to hold after every test | [`Oracle`] |
//! | what your service does when a real server dies, hangs or forgets (feature `rig`) | `rig` |
//!
//! Nothing here sleeps, and nothing is random without a seed: a test that fails
//! fails again. The rig alone has to do with real processes and with real time.
//!
//! ```
//! use std::sync::Arc;
//! use std::time::Duration;
//!
//! use terrace::{Memory, Terrace, Tier};
//! use terrace_test::{ChaosStore, ManualClock, MapStore};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let clock = Arc::new(ManualClock::new());
//! let map = Arc::new(MapStore::new());
//! let chaos = Arc::new(ChaosStore::over(map.clone()));
//! let terrace = Terrace::builder()
//!     .memory(Memory::default())
//!     .tier("map", Tier::shared(chaos.clone()))
//!     .clock(clock.clone())
//!     .build()
//!     .await?;
//! let ports = terrace.space::<str, u16>("port").ttl(Duration::from_secs(60)).build()?;
//!
//! ports.insert("http", 80).await?;
//! assert_eq!(map.keys().len(), 1, "what is inserted is written to every tier");
//!
//! clock.advance(Duration::from_secs(120));
//! assert!(ports.get("http").await?.is_none(), "too old");
//!
//! chaos.fail();
//! let port = ports.get_or_load("http", |_| async { Ok::<_, std::io::Error>(80) }).await?;
//! assert_eq!(*port, 80, "a tier that fails harms nobody");
//! # Ok(()) }
//! ```

#![forbid(unsafe_code)]

mod chaos;
mod clock;
pub mod conformance;
pub mod history;
mod map;
pub mod oracle;
mod random;
#[cfg(all(feature = "rig", unix))]
pub mod rig;
pub mod sweep;

pub use chaos::{Calls, ChaosStore, Damage, Fault, Gate, Verb};
pub use clock::{ManualClock, START};
pub use history::History;
pub use map::MapStore;
pub use oracle::Oracle;
