//! A **reply**: what a Redis server answers, of either version of its protocol.

use std::borrow::Cow;

use super::RigError;

/// Deeper than this nests nothing but garbage.
const DEEPEST: usize = 32;

/// One reply, or one message that came without being asked for.
///
/// It equals a text if it is that text: `assert_eq!(reply, "OK")`.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Reply {
    /// A short text, and a number too long for the others: `+OK`.
    Simple(String),
    /// An error, its code first: `-LOADING …`.
    Error(String),
    /// A number.
    Integer(i64),
    /// A number with a fraction.
    Double(f64),
    /// True or false.
    Boolean(bool),
    /// Bytes.
    Bulk(Vec<u8>),
    /// Nothing.
    Nil,
    /// Several; sets are among these.
    Array(Vec<Self>),
    /// Several by name.
    Map(Vec<(Self, Self)>),
    /// A message that nobody asked for.
    Push(Vec<Self>),
}

impl Reply {
    /// The text of it: `None` of an error, of nothing, and of several.
    #[must_use]
    pub fn text(&self) -> Option<Cow<'_, str>> {
        match self {
            Self::Simple(text) => Some(Cow::Borrowed(text)),
            Self::Bulk(bytes) => Some(String::from_utf8_lossy(bytes)),
            Self::Integer(number) => Some(Cow::Owned(number.to_string())),
            Self::Double(number) => Some(Cow::Owned(number.to_string())),
            Self::Boolean(truth) => Some(Cow::Owned(truth.to_string())),
            Self::Error(_) | Self::Nil | Self::Array(_) | Self::Map(_) | Self::Push(_) => None,
        }
    }

    /// The bytes of it, where [`text`](Self::text) is a text.
    #[must_use]
    pub fn bytes(&self) -> Option<Vec<u8>> {
        match self {
            Self::Bulk(bytes) => Some(bytes.clone()),
            other => other.text().map(|text| text.into_owned().into_bytes()),
        }
    }

    /// The number, also when it is written as text.
    #[must_use]
    pub fn integer(&self) -> Option<i64> {
        self.text()?.parse().ok()
    }

    /// What the server complains of, if it does.
    #[must_use]
    pub fn error(&self) -> Option<&str> {
        match self {
            Self::Error(error) => Some(error),
            _ => None,
        }
    }

    /// Whether the server has nothing.
    #[must_use]
    pub fn is_nil(&self) -> bool {
        matches!(self, Self::Nil)
    }

    /// The parts; none of what has none. A map's are names and values by turns.
    #[must_use]
    pub fn items(&self) -> Vec<&Self> {
        match self {
            Self::Array(items) | Self::Push(items) => items.iter().collect(),
            Self::Map(pairs) => pairs.iter().flat_map(|(name, value)| [name, value]).collect(),
            _ => Vec::new(),
        }
    }

    /// Of names and values by turns, the text of the value called `name`.
    #[must_use]
    pub fn field(&self, name: &str) -> Option<Cow<'_, str>> {
        let items = self.items();
        let (names, values) = (items.iter().step_by(2), items.iter().skip(1).step_by(2));
        names.zip(values).find(|(other, _)| **other == name).and_then(|(_, value)| value.text())
    }

    /// The first reply in `bytes` and its length, or `None` if it has not ended.
    ///
    /// # Errors
    /// The bytes are not the beginning of any reply.
    pub fn parse(bytes: &[u8]) -> Result<Option<(Self, usize)>, RigError> {
        let mut reader = Reader { bytes, at: 0 };
        Ok(reader.reply(0)?.map(|reply| (reply, reader.at)))
    }
}

impl PartialEq<str> for Reply {
    fn eq(&self, other: &str) -> bool {
        self.text().is_some_and(|text| text == other)
    }
}

impl PartialEq<&str> for Reply {
    fn eq(&self, other: &&str) -> bool {
        self == *other
    }
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn reply(&mut self, depth: usize) -> Result<Option<Reply>, RigError> {
        if depth > DEEPEST {
            return Err(malformed("it nests too deep"));
        }
        let Some(line) = self.line() else { return Ok(None) };
        let Some((kind, rest)) = line.split_first() else {
            return Err(malformed("an empty line"));
        };
        let text = || String::from_utf8_lossy(rest).into_owned();
        Ok(Some(match kind {
            b'+' | b'(' => Reply::Simple(text()),
            b'-' => Reply::Error(text()),
            b':' => Reply::Integer(number(rest)?),
            b',' => Reply::Double(number(rest)?),
            b'#' => Reply::Boolean(rest == b"t"),
            b'_' => Reply::Nil,
            b'$' | b'=' | b'!' => {
                let Some(length) = length(rest)? else { return Ok(Some(Reply::Nil)) };
                let Some(bytes) = self.block(length)? else { return Ok(None) };
                match kind {
                    b'!' => Reply::Error(String::from_utf8_lossy(bytes).into_owned()),
                    // Three letters say how to show it, then comes a colon.
                    b'=' => Reply::Bulk(bytes.get(4..).unwrap_or_default().to_vec()),
                    _ => Reply::Bulk(bytes.to_vec()),
                }
            }
            b'*' | b'~' | b'>' => {
                let Some(length) = length(rest)? else { return Ok(Some(Reply::Nil)) };
                let Some(items) = self.replies(length, depth)? else { return Ok(None) };
                if *kind == b'>' { Reply::Push(items) } else { Reply::Array(items) }
            }
            b'%' | b'|' => {
                let length = length(rest)?.unwrap_or(0).saturating_mul(2);
                let Some(items) = self.replies(length, depth)? else { return Ok(None) };
                if *kind == b'|' {
                    // What is said about a reply comes before it.
                    return self.reply(depth);
                }
                let mut items = items.into_iter();
                let mut pairs = Vec::new();
                while let (Some(name), Some(value)) = (items.next(), items.next()) {
                    pairs.push((name, value));
                }
                Reply::Map(pairs)
            }
            _ => return Err(malformed(&format!("it begins with {:?}", char::from(*kind)))),
        }))
    }

    fn replies(&mut self, count: usize, depth: usize) -> Result<Option<Vec<Reply>>, RigError> {
        let mut replies = Vec::new();
        for _ in 0..count {
            let Some(reply) = self.reply(depth + 1)? else { return Ok(None) };
            replies.push(reply);
        }
        Ok(Some(replies))
    }

    /// Up to the end of the line, without that.
    fn line(&mut self) -> Option<&'a [u8]> {
        let rest = self.bytes.get(self.at..)?;
        let length = rest.windows(2).position(|pair| pair == b"\r\n")?;
        self.at += length + 2;
        rest.get(..length)
    }

    fn block(&mut self, length: usize) -> Result<Option<&'a [u8]>, RigError> {
        let end = self.at.saturating_add(length);
        let Some(after) = self.bytes.get(end..end.saturating_add(2)) else { return Ok(None) };
        if after != b"\r\n" {
            return Err(malformed("bytes go on after their end"));
        }
        let block = self.bytes.get(self.at..end);
        self.at = end + 2;
        Ok(block)
    }
}

/// `None` is what older servers say for nothing.
fn length(text: &[u8]) -> Result<Option<usize>, RigError> {
    let length: i64 = number(text)?;
    match usize::try_from(length) {
        Ok(length) => Ok(Some(length)),
        Err(_) if length == -1 => Ok(None),
        Err(_) => Err(malformed("a length below nothing")),
    }
}

fn number<T: std::str::FromStr>(text: &[u8]) -> Result<T, RigError> {
    let number = std::str::from_utf8(text).ok().and_then(|text| text.parse().ok());
    number.ok_or_else(|| malformed("a number that is none"))
}

fn malformed(why: &str) -> RigError {
    RigError::Malformed { why: why.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole(bytes: &[u8]) -> Reply {
        let (reply, length) = Reply::parse(bytes).unwrap().unwrap();
        assert_eq!(length, bytes.len());
        for cut in 0..length {
            assert_eq!(Reply::parse(&bytes[..cut]).unwrap(), None, "cut at {cut}");
        }
        reply
    }

    #[test]
    fn replies_of_both_protocols() {
        assert_eq!(whole(b"+OK\r\n"), "OK");
        assert_eq!(whole(b"-ERR no\r\n").error(), Some("ERR no"));
        assert_eq!(whole(b":-7\r\n").integer(), Some(-7));
        assert_eq!(whole(b"$4\r\na\r\nb\r\n"), "a\r\nb");
        assert!(
            whole(b"$-1\r\n").is_nil() && whole(b"*-1\r\n").is_nil() && whole(b"_\r\n").is_nil()
        );
        assert_eq!(whole(b",1.5\r\n"), Reply::Double(1.5));
        assert_eq!(whole(b"#t\r\n"), Reply::Boolean(true));
        assert_eq!(whole(b"=5\r\ntxt:a\r\n"), "a");
        assert_eq!(whole(b"!3\r\nbad\r\n").error(), Some("bad"));
        assert_eq!(whole(b"*2\r\n:1\r\n*1\r\n$1\r\nx\r\n").items().len(), 2);
        assert_eq!(whole(b"%1\r\n+a\r\n:1\r\n").field("a").unwrap(), "1");
        assert_eq!(whole(b"|1\r\n+a\r\n:1\r\n+b\r\n"), "b");
        assert_eq!(whole(b">1\r\n+a\r\n"), Reply::Push(vec![Reply::Simple("a".into())]));
    }

    #[test]
    fn garbage_is_an_error() {
        let deep = b"*1\r\n".repeat(DEEPEST + 2);
        let all: [&[u8]; 5] = [b"?\r\n", b"\r\n", b":x\r\n", b"$1\r\nab\r\n", &deep];
        for bytes in all {
            assert!(Reply::parse(bytes).is_err(), "{bytes:?}");
        }
    }
}
