//! The **replies** of a server as what they mean, and its errors as what is to be done about them.

use bytes::Bytes;
use redis::{ErrorKind, RedisError, ServerErrorKind, Value};

use crate::store::{StoreError, StoreErrorKind};

/// What a failed exchange says about its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The server answered: the connection is as good as it was.
    Keep,
    /// The connection is broken, or leads to the wrong server: make another one.
    Replace,
}

/// The failure as callers see it, and what becomes of the connection.
pub(super) fn classify(error: RedisError, doing: &'static str) -> (StoreError, Verdict) {
    use StoreErrorKind as Kind;
    let (kind, verdict) = match error.kind() {
        ErrorKind::Io if error.is_timeout() => (Kind::Deadline, Verdict::Replace),
        ErrorKind::Io | ErrorKind::ClusterConnectionNotFound | ErrorKind::Parse => {
            (Kind::Unavailable, Verdict::Replace)
        }
        ErrorKind::AuthenticationFailed => (Kind::Denied, Verdict::Replace),
        ErrorKind::Server(server) => match server {
            // It was a primary once, or is not one yet.
            ServerErrorKind::ReadOnly
            | ServerErrorKind::BusyLoading
            | ServerErrorKind::MasterDown => (Kind::Unavailable, Verdict::Replace),
            ServerErrorKind::ClusterDown
            | ServerErrorKind::TryAgain
            | ServerErrorKind::Moved
            | ServerErrorKind::Ask => (Kind::Unavailable, Verdict::Keep),
            ServerErrorKind::NoPerm => (Kind::Denied, Verdict::Keep),
            // It says so in place of the first answer, and hangs up.
            ServerErrorKind::ResponseError
                if error.detail().is_some_and(|text| text.starts_with("max number of clients")) =>
            {
                (Kind::Unavailable, Verdict::Replace)
            }
            _ => by_code(error.detail().and_then(code_in_script).or(error.code())),
        },
        _ => by_code(error.code()),
    };
    (StoreError::new(kind, doing).caused_by(error), verdict)
}

/// Errors that the client library has no name for.
fn by_code(code: Option<&str>) -> (StoreErrorKind, Verdict) {
    use StoreErrorKind as Kind;
    match code {
        // The password was changed: another connection presents the one that we have.
        Some("NOAUTH" | "WRONGPASS") => (Kind::Denied, Verdict::Replace),
        Some("OOM") => (Kind::Full, Verdict::Keep),
        // The library has names for them, but not where they come from a script.
        Some("READONLY" | "LOADING" | "MASTERDOWN") => (Kind::Unavailable, Verdict::Replace),
        Some("BUSY" | "NOREPLICAS" | "MISCONF" | "UNBLOCKED") => (Kind::Unavailable, Verdict::Keep),
        _ => (Kind::Other, Verdict::Keep),
    }
}

/// The code of what went wrong in a script. Servers before 7.0 put it into a text:
/// `Error running script (call to f_…): @user_script:7: -OOM command not allowed …`.
fn code_in_script(detail: &str) -> Option<&str> {
    let (_, error) = detail.strip_prefix("Error running script")?.split_once(": -")?;
    error.split(' ').next()
}

/// An answer of another shape than was asked for: whatever it is, it is not ours.
#[derive(Debug, thiserror::Error)]
#[error("the server answered with {0}, which is not what was asked for")]
struct Odd(&'static str);

pub(super) fn odd(doing: &'static str, found: &'static str) -> StoreError {
    StoreError::new(StoreErrorKind::Damaged, doing).caused_by(Odd(found))
}

/// What an answer is, without what it says, which may be a secret.
fn shape(value: &Value) -> &'static str {
    match value {
        Value::Nil => "nothing",
        Value::Int(_) => "a number",
        Value::BulkString(_) | Value::SimpleString(_) | Value::VerbatimString { .. } => "a text",
        Value::Okay => "OK",
        Value::Array(_) => "a list",
        Value::ServerError(_) => "an error",
        _ => "something else",
    }
}

pub(super) fn bulk(value: Value, doing: &'static str) -> Result<Option<Bytes>, StoreError> {
    match value {
        Value::Nil => Ok(None),
        Value::BulkString(bytes) => Ok(Some(bytes.into())),
        other => Err(odd(doing, shape(&other))),
    }
}

pub(super) fn integer(value: Value, doing: &'static str) -> Result<i64, StoreError> {
    match value {
        Value::Int(number) => Ok(number),
        Value::BulkString(bytes) => {
            let text = std::str::from_utf8(&bytes).ok();
            text.and_then(|text| text.parse().ok()).ok_or_else(|| odd(doing, "no number"))
        }
        // A score, in the newer protocol.
        Value::Double(number) => {
            format!("{number}").parse().map_err(|_| odd(doing, "no whole number"))
        }
        other => Err(odd(doing, shape(&other))),
    }
}

pub(super) fn unsigned(value: Value, doing: &'static str) -> Result<u64, StoreError> {
    integer(value, doing)
        .and_then(|number| u64::try_from(number).map_err(|_| odd(doing, "a number below 0")))
}

pub(super) fn text(value: Value, doing: &'static str) -> Result<String, StoreError> {
    match value {
        Value::BulkString(bytes) => String::from_utf8(bytes).map_err(|_| odd(doing, "no UTF-8")),
        Value::SimpleString(text) | Value::VerbatimString { text, .. } => Ok(text),
        other => Err(odd(doing, shape(&other))),
    }
}

pub(super) fn array(value: Value, doing: &'static str) -> Result<Vec<Value>, StoreError> {
    match value {
        Value::Array(values) => Ok(values),
        other => Err(odd(doing, shape(&other))),
    }
}

pub(super) fn array_of(
    value: Value,
    length: usize,
    doing: &'static str,
) -> Result<Vec<Value>, StoreError> {
    array(value, doing).and_then(|values| {
        if values.len() == length {
            Ok(values)
        } else {
            Err(odd(doing, "a list of another length"))
        }
    })
}

pub(super) fn fields<const N: usize>(
    value: Value,
    doing: &'static str,
) -> Result<[Value; N], StoreError> {
    array(value, doing)?.try_into().map_err(|_| odd(doing, "a list of another length"))
}

pub(super) fn integers(value: Value, doing: &'static str) -> Result<Vec<i64>, StoreError> {
    array(value, doing)?.into_iter().map(|value| integer(value, doing)).collect()
}
