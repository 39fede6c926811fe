//! The kits catch authorities that break a promise.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use terrace::authority::{Answer, Appended, Authority, LocalAuthority};
use terrace::clock::WallTime;
use terrace::ledger::{Name, Names, Stamp};
use terrace::protocol::{Follow, Lease, Leased, Snapshot};
use terrace::store::Scope;
use terrace_test::conformance;

/// What is wrong with an authority.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flaw {
    SkipsNumbers,
    FollowsOneBehind,
    FollowsTheFuture,
    FollowsAnybody,
    LeavesAHole,
    SnapshotForgetsPrefixes,
    SnapshotOutOfOrder,
    NeverRefuses,
    ForgetsOldTickets,
    GrantsAlways,
    RenewsAnybody,
    ReleasesAnybody,
    SetVoidsLease,
    KeyLeavesLease,
    TagDropsCounters,
    KeepsCounters,
    CountersNeverLapse,
    CountersArePrefixed,
    SaysNothingWasHeld,
    SplitsAppends,
    SplitsJudgement,
}

use Flaw::*;

#[derive(Debug)]
struct Flawed {
    inner: LocalAuthority,
    flaw: Flaw,
    extra: AtomicU64,
}

impl Flawed {
    fn is(&self, flaw: Flaw) -> bool {
        self.flaw == flaw
    }
}

impl Authority for Flawed {
    fn scope(&self) -> Scope {
        self.inner.scope()
    }

    fn snapshot(&self) -> Answer<'_, Snapshot> {
        Box::pin(async {
            let mut snapshot = self.inner.snapshot().await?;
            if self.is(SnapshotForgetsPrefixes) {
                snapshot.names.retain(|line| !matches!(line.name, Name::Prefix(_)));
            }
            if self.is(SnapshotOutOfOrder) {
                snapshot.names.sort_by(|one, other| one.name.cmp(&other.name));
            }
            Ok(snapshot)
        })
    }

    fn append<'a>(&'a self, names: &'a [Name]) -> Answer<'a, Appended> {
        Box::pin(async move {
            if self.is(SkipsNumbers) && names.len() > 2 {
                self.inner.append(&[Name::Key("".into())]).await?;
            }
            if self.is(SplitsAppends) {
                let mut whole = self.inner.append(&[]).await?;
                for name in names {
                    let one = self.inner.append(std::slice::from_ref(name)).await?;
                    whole.position = one.position;
                    whole.held.extend(one.held);
                    tokio::task::yield_now().await;
                }
                return Ok(whole);
            }
            let is_tag = matches!(names, [Name::Tag(_)]);
            self.extra.store(u64::from(is_tag), Ordering::Relaxed);
            let names = match names {
                [Name::Set(key)] if self.is(SetVoidsLease) => vec![Name::Key(Arc::clone(key))],
                [Name::Key(key)] if self.is(KeyLeavesLease) && key.starts_with("te:sp_ace") => {
                    vec![Name::Set(Arc::clone(key))]
                }
                names => names.to_vec(),
            };
            let mut appended = self.inner.append(&names).await?;
            if self.is(SaysNothingWasHeld) {
                appended.held.fill(false);
            }
            Ok(appended)
        })
    }

    fn append_if_unnamed<'a>(
        &'a self,
        mut ticket: Stamp,
        name: Name,
        names: Names<'a>,
    ) -> Answer<'a, Option<Appended>> {
        Box::pin(async move {
            let here = self.inner.append(&[]).await?.position;
            if self.is(NeverRefuses) {
                ticket.number = here.number;
            }
            if self.is(ForgetsOldTickets) && here.number - ticket.number > 1000 {
                ticket.number = here.number;
            }
            if self.is(SplitsJudgement) {
                let is_unnamed =
                    self.inner.append_if_unnamed(ticket, Name::Tag("-".into()), names).await?;
                if is_unnamed.is_none() {
                    return Ok(None);
                }
                tokio::task::yield_now().await;
                return self.inner.append(&[name]).await.map(Some);
            }
            self.inner.append_if_unnamed(ticket, name, names).await
        })
    }

    fn follow(&self, mut position: Stamp) -> Answer<'_, Follow> {
        Box::pin(async move {
            let here = self.inner.append(&[]).await?.position;
            if self.is(FollowsOneBehind) && position.number > 0 && position.number < here.number {
                position.number -= 1;
            }
            if self.is(FollowsTheFuture) {
                position.number = position.number.min(here.number);
            }
            if self.is(FollowsAnybody) {
                position.incarnation = here.incarnation;
            }
            if self.is(LeavesAHole) {
                position.number = position.number.max(here.number.saturating_sub(1000));
            }
            self.inner.follow(position).await
        })
    }

    fn lease<'a>(
        &'a self,
        key: &'a Arc<str>,
        now: WallTime,
        until: WallTime,
    ) -> Answer<'a, Leased> {
        Box::pin(async move {
            if self.is(GrantsAlways) {
                let token = self.extra.fetch_add(1, Ordering::Relaxed);
                return Ok(Leased::Granted(Lease { token, until }));
            }
            self.inner.lease(key, now, until).await
        })
    }

    fn renew<'a>(&'a self, key: &'a str, token: u64, until: WallTime) -> Answer<'a, bool> {
        Box::pin(async move {
            if self.is(RenewsAnybody) {
                return Ok(true);
            }
            self.inner.renew(key, token, until).await
        })
    }

    fn release<'a>(&'a self, key: &'a str, token: u64) -> Answer<'a, ()> {
        Box::pin(async move {
            if self.is(ReleasesAnybody) {
                for token in 0..100 {
                    self.inner.release(key, token).await?;
                }
            }
            self.inner.release(key, token).await
        })
    }

    fn count<'a>(
        &'a self,
        key: &'a Arc<str>,
        by: i64,
        now: WallTime,
        expires: Option<WallTime>,
    ) -> Answer<'a, i64> {
        Box::pin(async move {
            let expires = expires.filter(|_| !self.is(CountersNeverLapse));
            if self.is(KeepsCounters) {
                let key = Arc::from(format!("elsewhere:{key}"));
                return self.inner.count(&key, by, now, expires).await;
            }
            if self.is(CountersArePrefixed) {
                let key = Arc::from(key.replace('_', "x"));
                return self.inner.count(&key, by, now, expires).await;
            }
            self.inner.count(key, by, now, expires).await
        })
    }

    fn counter<'a>(&'a self, key: &'a str, now: WallTime) -> Answer<'a, Option<i64>> {
        Box::pin(async move {
            if self.is(KeepsCounters) {
                return self.inner.counter(&format!("elsewhere:{key}"), now).await;
            }
            if self.is(CountersArePrefixed) {
                return self.inner.counter(&key.replace('_', "x"), now).await;
            }
            if self.is(TagDropsCounters) && self.extra.load(Ordering::Relaxed) == 1 {
                return Ok(None);
            }
            self.inner.counter(key, now).await
        })
    }
}

/// The sentence with which the kit turns an authority down.
fn verdict(flaw: Flaw) -> String {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let make = || async move {
        let inner = LocalAuthority::new(7);
        Arc::new(Flawed { inner, flaw, extra: 0.into() }) as Arc<dyn Authority>
    };
    let kit = AssertUnwindSafe(|| runtime.block_on(conformance::authority(make)));
    match std::panic::catch_unwind(kit) {
        Ok(()) => "passed".into(),
        Err(panic) => panic.downcast_ref::<String>().cloned().unwrap_or_default(),
    }
}

#[test]
fn the_kit_says_what_is_wrong_with_an_authority() {
    let flaws = [
        (SkipsNumbers, "positions grow by one for each name"),
        (FollowsOneBehind, "follow gives exactly the lines since"),
        (FollowsTheFuture, "who know lines that there never were"),
        (FollowsAnybody, "for those who followed another incarnation"),
        (LeavesAHole, "gets every line or learns that the chain is broken"),
        (SnapshotForgetsPrefixes, "a snapshot has the last line"),
        (SnapshotOutOfOrder, "a snapshot has the last line"),
        (NeverRefuses, "the authority judges like those who follow"),
        (ForgetsOldTickets, "counts even when it is long ago"),
        (GrantsAlways, "a lease that stands is held"),
        (RenewsAnybody, "a lease that was never granted cannot be renewed"),
        (ReleasesAnybody, "a lease is given back with its token alone"),
        (SetVoidsLease, "a lease outlasts every other line"),
        (KeyLeavesLease, "the line that invalidates a key voids its lease"),
        (TagDropsCounters, "tags name none"),
        (KeepsCounters, "append says whether it dropped a counter"),
        (CountersNeverLapse, "a counter lapses when was said"),
        (CountersArePrefixed, "append says whether it dropped a counter"),
        (SaysNothingWasHeld, "append says whether it dropped a counter"),
        (SplitsAppends, "the lines of one call follow each other"),
        (SplitsJudgement, "a line is appended if none since the ticket names it"),
    ];
    let mut overlooked = Vec::new();
    for (flaw, sentence) in flaws {
        let verdict = verdict(flaw);
        if !verdict.contains(sentence) {
            overlooked.push(format!("{flaw:?}: {verdict}"));
        }
    }
    assert!(overlooked.is_empty(), "{}", overlooked.join("\n"));
}

#[test]
fn a_random_walk_that_fails_says_its_seed() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let authority = Flawed { inner: LocalAuthority::new(7), flaw: NeverRefuses, extra: 0.into() };
    let walk = AssertUnwindSafe(|| runtime.block_on(conformance::random_walk(&authority, 42)));
    let panic = std::panic::catch_unwind(walk).unwrap_err();
    let verdict = panic.downcast_ref::<String>().unwrap();
    assert!(verdict.contains("seed 42, step"), "{verdict}");
}
