//! The **kind** of data: a named set of defaults for spaces, whose counts are also kept together.

use std::borrow::Cow;
use std::time::Duration;

use crate::core::Core;
use crate::error::BuildError;
use crate::options::Tiers;
use crate::policy::Policy;
use crate::store::Scope;

/// How data of some kind is cached unless its space says otherwise: for how long, and in which
/// tiers. What happens in all spaces of a kind is in [`Stats::kinds`](crate::Stats::kinds).
///
/// | kind | tiers | fresh for |
/// | --- | --- | --- |
/// | [`STATIC`](Self::STATIC) | all | a day |
/// | [`DYNAMIC`](Self::DYNAMIC) | memory, and those that a fleet shares | an hour |
/// | [`COMPUTED`](Self::COMPUTED) | all | half an hour |
/// | [`TEMPORARY`](Self::TEMPORARY) | memory | five minutes |
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # use std::time::Duration;
/// # let terrace = terrace::Terrace::builder().memory(terrace::Memory::bytes(1 << 20)).build().await?;
/// use terrace::Kind;
///
/// let airports = terrace.space::<str, String>("airport").kind(Kind::STATIC).build()?;
/// let weather = Kind::custom("weather").ttl(Duration::from_secs(600)).tiers(["memory"]);
/// let winds = terrace.space::<str, f64>("wind").kind(weather.clone()).build()?;
/// let clouds = terrace.space::<str, u8>("cloud").kind(weather).build()?;
/// winds.insert("LSZH", 4.5).await?;
/// assert!(clouds.get("LSZH").await?.is_none());
///
/// let stats = terrace.stats().await;
/// let weather = stats.kinds.iter().find(|kind| &*kind.name == "weather");
/// assert_eq!(weather.map(|kind| (kind.spaces, kind.tiers[0].1.misses)), Some((2, 1)));
/// # airports.clear().await?;
/// # Ok(()) }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use = "a kind is given to SpaceBuilder::kind"]
pub struct Kind {
    name: Cow<'static, str>,
    ttl: Option<Duration>,
    tiers: Kept,
}

/// Which tiers keep something.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Kept {
    All,
    Memory,
    MemoryAndFleet,
    These(Vec<String>),
}

impl Kind {
    /// What hardly ever changes: a day, in all tiers.
    pub const STATIC: Self = Self::new("static", 86_400, Kept::All);

    /// What changes now and then: an hour, in memory and in the tiers that a fleet shares, such as
    /// Redis, where all nodes see the same.
    pub const DYNAMIC: Self = Self::new("dynamic", 3_600, Kept::MemoryAndFleet);

    /// What is worked out of other data: half an hour, in all tiers.
    pub const COMPUTED: Self = Self::new("computed", 1_800, Kept::All);

    /// What is of use for a moment: five minutes, in memory alone.
    pub const TEMPORARY: Self = Self::new("temporary", 300, Kept::Memory);

    const fn new(name: &'static str, seconds: u64, tiers: Kept) -> Self {
        Self { name: Cow::Borrowed(name), ttl: Some(Duration::from_secs(seconds)), tiers }
    }

    /// A kind of your own: in all tiers, for as long as the cache says, unless you say otherwise.
    pub fn custom(name: &str) -> Self {
        Self { name: Cow::Owned(name.into()), ttl: None, tiers: Kept::All }
    }

    /// How long its entries are fresh.
    pub fn ttl(self, ttl: Duration) -> Self {
        Self { ttl: Some(ttl), ..self }
    }

    /// Which tiers keep its entries: `memory`, and the tiers' own names. The others are neither
    /// read nor written.
    pub fn tiers<T: Into<String>>(self, names: impl IntoIterator<Item = T>) -> Self {
        Self { tiers: Kept::These(names.into_iter().map(Into::into).collect()), ..self }
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Says in the policy of a space what this kind says.
    pub(crate) fn apply(&self, core: &Core, policy: &mut Policy) {
        policy.kind = Some(self.name().into());
        policy.unused = self.unused(core);
        if self.ttl.is_some() {
            policy.ttl = self.ttl;
        }
    }

    /// The tiers that do not keep it.
    fn unused(&self, core: &Core) -> Tiers {
        let mut unused = Tiers::default();
        let below = core.tiers.iter().map(|tier| (&*tier.name, tier.scope));
        for (number, (name, scope)) in
            (0..).zip(std::iter::once(("memory", Scope::Process)).chain(below))
        {
            let is_kept = match &self.tiers {
                Kept::All => true,
                Kept::Memory => number == 0,
                Kept::MemoryAndFleet => number == 0 || scope == Scope::Fleet,
                Kept::These(names) => names.iter().any(|kept| kept == name),
            };
            if !is_kept {
                unused.add(number);
            }
        }
        unused
    }

    /// Fails if it names a tier that there is not.
    pub(crate) fn check(&self, core: &Core) -> Result<(), BuildError> {
        let Kept::These(names) = &self.tiers else { return Ok(()) };
        let unknown = names.iter().find(|name| core.tier_number(name).is_none());
        unknown.map_or(Ok(()), |name| {
            let reason = "a kind is kept in it, and there is no such tier";
            Err(BuildError::BadName { name: name.clone(), reason })
        })
    }
}
