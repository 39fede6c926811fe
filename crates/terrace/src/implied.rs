//! The **implied tags**: tags that no caller gives, by which lines reach what has no name of its
//! own in the ledger.
//!
//! An authority knows keys, tags, prefixes and spaces, and judges whatever is put into it by
//! their lines. What else can be invalidated is therefore said with tags, so that every
//! authority, tier and process judges it as it judges them, in one step with storing:
//!
//! | tag | who carries it | who names it |
//! | --- | --- | --- |
//! | `tenant:#space` | entries whose key is so long that only its hash is known | prefixes of the space, which do not begin such a name |
//! | `tenant:?tag` | nobody: it is compared with entries that carry the tag | what [marks a tag stale](crate::Terrace::mark_stale_tag) |
//! | `tenant:*space` | nobody: it is compared with the tickets of loads, and put beside the tags of what they store | a [sweep](crate::Terrace::remove_pattern) of the space, before it begins |
//! | `tenant:*space:pattern` | nobody: every process empties its memory by it | the same |
//! | `tenant:!space:key` | what was [built from](crate::SpaceBuilder::tracked) the key | what names the key, if its space is tracked |
//! | `tenant:!space` | the same | what names prefixes or the whole of a tracked space |
//!
//! Each has a mark after its tenant that the escaped form of a caller's tag never has.

use std::sync::Arc;

use crate::key::{escaped_part, unescape};
use crate::ledger::Name;

/// Marks the long keys of a space.
const LONG_KEYS: char = '#';

/// Marks a tag whose entries are out of date, and may do meanwhile.
const STALE: char = '?';

/// Marks a space that is swept.
const SWEPT: char = '*';

/// Marks what something was built from.
const BUILT_FROM: char = '!';

/// All of them.
const MARKS: [char; 4] = [LONG_KEYS, STALE, SWEPT, BUILT_FROM];

/// What the long keys of a space carry.
pub(crate) fn long_keys(space: &str) -> Arc<str> {
    marked(space, LONG_KEYS)
}

/// What is named when a tag's entries are out of date.
pub(crate) fn stale(tag: &str) -> Arc<str> {
    marked(tag, STALE)
}

/// What is named to keep loads of a space that are under way from storing anything.
pub(crate) fn fence(space: &str) -> Arc<str> {
    marked(space, SWEPT)
}

/// The space that such a name speaks of.
pub(crate) fn of_fence(name: &str) -> Option<Arc<str>> {
    unmarked(name, SWEPT).filter(|space| space.matches(':').count() == 1)
}

/// What tells every process that the keys of a space go that match a pattern.
pub(crate) fn sweep(space: &str, pattern: &str) -> Arc<str> {
    let pattern = escaped_part(pattern);
    marked(&format!("{space}:{pattern}"), SWEPT)
}

/// The space and the pattern that such a name speaks of.
pub(crate) fn of_sweep(name: &str) -> Option<(Arc<str>, String)> {
    let swept = unmarked(name, SWEPT)?;
    let (end, _) = swept.match_indices(':').nth(1)?;
    let pattern = String::from_utf8(unescape(swept.get(end + 1..)?)).ok()?;
    Some((swept.get(..end)?.into(), pattern))
}

/// The tag that such a name speaks of.
pub(crate) fn of_stale(name: &str) -> Option<Arc<str>> {
    unmarked(name, STALE)
}

/// Whether no caller gave this tag.
pub(crate) fn is_implied(tag: &str) -> bool {
    tag.split_once(':').is_some_and(|(_, rest)| rest.starts_with(MARKS))
}

/// What an entry carries that was built from what is under a key.
pub(crate) fn dependent_on(key: &str, space: &str) -> [Arc<str>; 2] {
    [marked(key, BUILT_FROM), marked(space, BUILT_FROM)]
}

/// What lines about these names have to name as well.
pub(crate) fn by_names(names: &[Name], is_tracked: impl Fn(&str) -> bool) -> Vec<Name> {
    let mut implied = Vec::new();
    for name in names {
        match name {
            Name::Key(key) | Name::Set(key) => {
                let is_tracked = space_of(key).is_some_and(&is_tracked);
                implied.extend(is_tracked.then(|| marked(key, BUILT_FROM)));
            }
            Name::Prefix(prefix) => {
                let Some(space) = space_of(prefix) else { continue };
                implied.push(long_keys(space));
                implied.extend(is_tracked(space).then(|| marked(space, BUILT_FROM)));
            }
            Name::Space(space) => {
                implied.extend(is_tracked(space).then(|| marked(space, BUILT_FROM)));
            }
            Name::Tag(tag) => {
                // What only memory holds is swept without a line of its own.
                let swept = of_sweep(tag).map(|(space, _)| space);
                let space = swept.or_else(|| unmarked(tag, LONG_KEYS));
                let space = space.filter(|space| is_tracked(space));
                implied.extend(space.map(|space| marked(&space, BUILT_FROM)));
            }
            Name::Everything => {}
        }
    }
    implied.into_iter().map(Name::Tag).collect()
}

/// Whether nothing in memory is dead by a line about this tag.
pub(crate) fn kills_nothing(tag: &str) -> bool {
    unmarked(tag, STALE).is_some() || unmarked(tag, SWEPT).is_some()
}

/// `tenant:space` of what begins with `tenant:space:`.
fn space_of(name: &str) -> Option<&str> {
    let (end, _) = name.match_indices(':').nth(1)?;
    name.get(..end)
}

fn marked(name: &str, mark: char) -> Arc<str> {
    let (tenant, rest) = name.split_once(':').unwrap_or(("", name));
    format!("{tenant}:{mark}{rest}").into()
}

fn unmarked(name: &str, mark: char) -> Option<Arc<str>> {
    let (tenant, rest) = name.split_once(':')?;
    let rest = rest.strip_prefix(mark)?;
    Some(format!("{tenant}:{rest}").into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::tag_name;

    #[test]
    fn no_tag_of_a_caller_is_taken_for_an_implied_one() {
        for tag in ["#space", "?tag", "!space:key", "*space", ":#a", "a"] {
            let name = tag_name("ten?ant", tag);
            assert!(!is_implied(&name), "{name}");
            assert!(is_implied(&stale(&name)) && is_implied(&long_keys(&name)));
            assert_eq!(of_stale(&stale(&name)), Some(name));
        }
        assert_eq!(of_stale(&long_keys("t:s")), None);
    }

    #[test]
    fn a_sweep_tells_its_space_and_its_pattern() {
        for pattern in ["user:*", "[a-z]?:%", "", "\\*", "é"] {
            let name = sweep("t:s", pattern);
            assert_eq!(of_sweep(&name), Some(("t:s".into(), pattern.to_owned())));
            assert_eq!(of_fence(&name), None);
        }
        assert_eq!(of_fence(&fence("t:s")).as_deref(), Some("t:s"));
        assert_eq!(of_sweep(&fence("t:s")), None);
    }
}
