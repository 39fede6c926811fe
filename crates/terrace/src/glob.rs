//! The **glob**: a pattern of keys, matched here and never by a server.

use std::sync::Arc;

/// The longest pattern, in bytes.
const LONGEST: usize = 512;

/// A pattern: `*` is any text, `?` one character, `[a-z]` one of these, `[^a-z]` or `[!a-z]` one
/// of the others; a backslash takes the next character as it is.
#[derive(Clone, Debug)]
pub(crate) struct Glob {
    steps: Arc<[Step]>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    This(char),
    One,
    Run,
    Class { is_negated: bool, ranges: Vec<(char, char)> },
}

impl Glob {
    /// Reads a pattern; fails with what is wrong with it.
    pub(crate) fn parse(pattern: &str) -> Result<Self, &'static str> {
        if pattern.len() > LONGEST {
            return Err("it is longer than 512 bytes");
        }
        let mut steps = Vec::new();
        let mut rest = pattern.chars();
        while let Some(character) = rest.next() {
            match character {
                '*' if steps.last() == Some(&Step::Run) => {}
                '*' => steps.push(Step::Run),
                '?' => steps.push(Step::One),
                '[' => steps.push(class(&mut rest)?),
                '\\' => steps.push(Step::This(rest.next().ok_or(OPEN_ESCAPE)?)),
                character => steps.push(Step::This(character)),
            }
        }
        Ok(Self { steps: steps.into() })
    }

    /// Writes a text so that it stands for itself in a pattern.
    pub(crate) fn escape(text: &str, pattern: &mut String) {
        for character in text.chars() {
            if matches!(character, '*' | '?' | '[' | ']' | '\\' | '^' | '!' | '-') {
                pattern.push('\\');
            }
            pattern.push(character);
        }
    }

    /// The text that keys begin with, if the pattern asks for nothing else.
    pub(crate) fn as_prefix(&self) -> Option<String> {
        let (last, before) = self.steps.split_last()?;
        (*last == Step::Run).then(|| literal(before)).flatten()
    }

    /// Whether a key's bytes match. Costs at most the product of both lengths.
    pub(crate) fn matches(&self, key: &[u8]) -> bool {
        let (mut rest, mut at) = (key, 0);
        // Where the last run began, and what it has not taken yet.
        let mut run: Option<(usize, &[u8])> = None;
        loop {
            let step = self.steps.get(at);
            if step == Some(&Step::Run) {
                run = Some((at + 1, rest));
                at += 1;
                continue;
            }
            let first = first(rest);
            match (step, first) {
                (None, None) => return true,
                (Some(step), Some((unit, after))) if step.takes(unit) => {
                    (rest, at) = (after, at + 1);
                    continue;
                }
                _ => {}
            }
            // The run takes one more.
            let Some((after_run, left)) = run else { return false };
            let Some((_, left)) = self::first(left) else { return false };
            run = Some((after_run, left));
            (rest, at) = (left, after_run);
        }
    }
}

impl Step {
    fn takes(&self, unit: Option<char>) -> bool {
        match (self, unit) {
            (Self::This(this), Some(character)) => *this == character,
            (Self::One, _) | (Self::Class { is_negated: true, .. }, None) => true,
            (Self::Class { is_negated, ranges }, Some(character)) => {
                let is_in = ranges.iter().any(|(from, to)| (*from..=*to).contains(&character));
                is_in != *is_negated
            }
            (Self::This(_) | Self::Class { .. } | Self::Run, _) => false,
        }
    }
}

const OPEN_ESCAPE: &str = "it ends with a backslash, which takes the next character as it is";
const OPEN_CLASS: &str = "a [ is not closed: write \\[ for the character";

/// The rest of a class, after its bracket.
fn class(rest: &mut std::str::Chars<'_>) -> Result<Step, &'static str> {
    let mut next = |is_first: bool| match rest.next().ok_or(OPEN_CLASS)? {
        ']' if !is_first => Ok(None),
        '\\' => rest.next().ok_or(OPEN_CLASS).map(|character| Some((character, true))),
        character => Ok(Some((character, false))),
    };
    let mut items = Vec::new();
    let mut is_negated = false;
    let mut is_first = true;
    while let Some(item) = next(is_first)? {
        if is_first && !is_negated && matches!(item, ('^' | '!', false)) {
            is_negated = true;
            continue;
        }
        is_first = false;
        items.push(item);
    }
    let mut ranges = Vec::new();
    let mut items = items.into_iter().peekable();
    while let Some((from, _)) = items.next() {
        let mut ahead = items.clone();
        let to = match (ahead.next(), ahead.next()) {
            (Some(('-', false)), Some((to, _))) => {
                items = ahead;
                to
            }
            _ => from,
        };
        if from > to {
            return Err("a range in [ ] ends before it begins");
        }
        ranges.push((from, to));
    }
    Ok(Step::Class { is_negated, ranges })
}

fn literal(steps: &[Step]) -> Option<String> {
    steps.iter().map(|step| if let Step::This(this) = step { Some(*this) } else { None }).collect()
}

/// The first character of some bytes, and what follows; a byte that is part of none stands for
/// itself, and is no character.
fn first(bytes: &[u8]) -> Option<(Option<char>, &[u8])> {
    let (&byte, after) = bytes.split_first()?;
    if byte.is_ascii() {
        return Some((Some(char::from(byte)), after));
    }
    let head = bytes.get(..bytes.len().min(4))?;
    let valid = match std::str::from_utf8(head) {
        Ok(text) => text,
        Err(error) => std::str::from_utf8(head.get(..error.valid_up_to())?).unwrap_or_default(),
    };
    match valid.chars().next() {
        Some(character) => Some((Some(character), bytes.get(character.len_utf8()..)?)),
        None => Some((None, after)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(pattern: &str, key: &str) -> bool {
        Glob::parse(pattern).expect(pattern).matches(key.as_bytes())
    }

    #[test]
    fn patterns_match_what_they_say() {
        for (pattern, yes, no) in [
            ("user:*", vec!["user:", "user:1:2"], vec!["user", "a user:1"]),
            ("*:1", vec![":1", "a:1:1"], vec!["a:1:2", "1"]),
            ("a?c", vec!["abc", "a?c", "aéc"], vec!["ac", "abbc"]),
            ("[a-c]x", vec!["ax", "cx"], vec!["dx", "x", "a"]),
            ("[^a-c]x", vec!["dx", "éx"], vec!["ax", "x"]),
            ("[!a]", vec!["b", "!"], vec!["a", ""]),
            ("[]a]", vec!["]", "a"], vec!["b"]),
            ("[a-]", vec!["a", "-"], vec!["b"]),
            ("[\\]\\-a]", vec!["]", "-", "a"], vec!["\\"]),
            ("\\*", vec!["*"], vec!["a", ""]),
            ("a\\\\b", vec!["a\\b"], vec!["ab"]),
            ("", vec![""], vec!["a"]),
            ("**", vec!["", "a"], vec![]),
            ("*a*b", vec!["ab", "xaxbxb"], vec!["ba", "abx"]),
            ("é*", vec!["é", "éa"], vec!["e"]),
        ] {
            yes.iter().for_each(|key| assert!(matches(pattern, key), "{pattern} and {key}"));
            no.iter().for_each(|key| assert!(!matches(pattern, key), "{pattern} and {key}"));
        }
        // Bytes that are no text.
        let any = Glob::parse("a?b*").unwrap();
        assert!(
            any.matches(b"a\xFFb") && any.matches(b"a\xC3b\xC3") && !any.matches(b"a\xFF\xFFb")
        );
    }

    #[test]
    fn what_is_no_pattern_says_why() {
        for pattern in ["[", "[a", "[]", "[^", "a\\", "[a\\", "[z-a]", &"a".repeat(513)] {
            assert!(Glob::parse(pattern).is_err(), "{pattern}");
        }
    }

    #[test]
    fn what_is_escaped_stands_for_itself() {
        for text in ["a*", "[ab]", "\\", "?-^!", "é", ""] {
            let mut pattern = String::new();
            Glob::escape(text, &mut pattern);
            assert!(matches(&pattern, text) && !matches(&pattern, "a"));
        }
    }

    #[test]
    fn a_plain_prefix_is_known_as_one() {
        let prefix = |pattern| Glob::parse(pattern).unwrap().as_prefix();
        assert_eq!(prefix("user:*").as_deref(), Some("user:"));
        assert_eq!(prefix("a\\*b**").as_deref(), Some("a*b"));
        assert_eq!(prefix("*").as_deref(), Some(""));
        for pattern in ["", "user", "u?*", "u*r*", "*a", "[a]*"] {
            assert_eq!(prefix(pattern), None, "{pattern}");
        }
    }

    /// The plainest way to match, for short texts.
    fn plainly(steps: &[Step], key: &[char]) -> bool {
        match (steps.split_first(), key.split_first()) {
            (None, _) => key.is_empty(),
            (Some((Step::Run, rest)), None) => plainly(rest, key),
            (Some((Step::Run, rest)), Some((_, after))) => {
                plainly(rest, key) || plainly(steps, after)
            }
            (Some(_), None) => false,
            (Some((step, rest)), Some((first, after))) => {
                step.takes(Some(*first)) && plainly(rest, after)
            }
        }
    }

    #[test]
    fn it_matches_as_the_plainest_way_does() {
        let mut random = fastrand::Rng::with_seed(7);
        let mut text = |letters: &[char], most: usize| -> String {
            (0..random.usize(0..=most)).map(|_| letters[random.usize(0..letters.len())]).collect()
        };
        let mut matched = 0;
        for _ in 0..50_000 {
            let (pattern, key) = (text(&['a', 'b', '*', '?', 'é'], 7), text(&['a', 'b', 'é'], 8));
            let glob = Glob::parse(&pattern).unwrap();
            let plain = plainly(&glob.steps, &key.chars().collect::<Vec<_>>());
            assert_eq!(glob.matches(key.as_bytes()), plain, "{pattern} and {key}");
            matched += u32::from(plain);
        }
        assert!(matched > 1_000, "{matched}");
    }

    /// A pattern that takes other matchers a time beyond all bounds.
    #[test]
    fn a_hostile_pattern_is_soon_done() {
        let (pattern, key) = ("a*".repeat(200) + "b", "a".repeat(64 << 10));
        assert!(!Glob::parse(&pattern).unwrap().matches(key.as_bytes()));
    }
}
