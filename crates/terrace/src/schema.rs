//! The **schema** of a value's type: a fingerprint of the names and kinds of its fields.
//!
//! It is a part of every stored key. A build in which a field was added, renamed
//! or given another type reads and writes under other keys than the build before
//! it: the two run side by side and neither meets bytes that it cannot decode.
//!
//! The fingerprint is found by letting the type deserialize itself from a source
//! that holds nothing and only takes notes of what it is asked for. It sees the
//! fields of structs, the variants of enums, what sequences, maps and options hold
//! when they are reached on the way, and stops where it is told nothing new. A
//! type that describes itself by hand may look the same after a change: give its
//! space a number with `schema(…)` then.

use std::fmt;

use serde::de::value::StrDeserializer;
use serde::de::{self, DeserializeOwned, IntoDeserializer, Visitor};
use xxhash_rust::xxh3::xxh3_64;

/// The fingerprint of `V`: equal for equal declarations, in every build.
#[must_use]
pub fn fingerprint<V: DeserializeOwned>() -> u64 {
    let mut notes = String::new();
    // The outcome does not matter: what was asked for does.
    let _ = V::deserialize(Probe { notes: &mut notes, depth: 0 });
    xxh3_64(notes.as_bytes())
}

/// Types that hold themselves are followed no deeper than this.
const DEEPEST: usize = 12;

/// A deserializer that answers every question with an empty value and notes it.
struct Probe<'a> {
    notes: &'a mut String,
    depth: usize,
}

impl Probe<'_> {
    fn note(&mut self, kind: &str) {
        self.notes.push_str(kind);
        self.notes.push(';');
    }

    fn deeper(&mut self) -> Result<Probe<'_>, Unknown> {
        if self.depth == DEEPEST {
            return Err(Unknown);
        }
        Ok(Probe { notes: self.notes, depth: self.depth + 1 })
    }
}

macro_rules! numbers {
    ($($ask:ident $visit:ident $zero:expr),* $(,)?) => {$(
        fn $ask<R: Visitor<'de>>(mut self, visitor: R) -> Result<R::Value, Unknown> {
            self.note(stringify!($ask));
            visitor.$visit($zero)
        }
    )*};
}

impl<'de> de::Deserializer<'de> for Probe<'_> {
    type Error = Unknown;

    numbers! {
        deserialize_bool visit_bool false,
        deserialize_i8 visit_i8 0, deserialize_i16 visit_i16 0,
        deserialize_i32 visit_i32 0, deserialize_i64 visit_i64 0, deserialize_i128 visit_i128 0,
        deserialize_u8 visit_u8 0, deserialize_u16 visit_u16 0,
        deserialize_u32 visit_u32 0, deserialize_u64 visit_u64 0, deserialize_u128 visit_u128 0,
        deserialize_f32 visit_f32 0.0, deserialize_f64 visit_f64 0.0,
        deserialize_char visit_char '0',
        deserialize_str visit_str "", deserialize_string visit_str "",
        deserialize_bytes visit_bytes b"", deserialize_byte_buf visit_bytes b"",
    }

    fn deserialize_any<R: Visitor<'de>>(mut self, visitor: R) -> Result<R::Value, Unknown> {
        self.note("any");
        visitor.visit_unit()
    }

    fn deserialize_unit<R: Visitor<'de>>(mut self, visitor: R) -> Result<R::Value, Unknown> {
        self.note("unit");
        visitor.visit_unit()
    }

    fn deserialize_ignored_any<R: Visitor<'de>>(self, visitor: R) -> Result<R::Value, Unknown> {
        visitor.visit_unit()
    }

    fn deserialize_option<R: Visitor<'de>>(mut self, visitor: R) -> Result<R::Value, Unknown> {
        self.note("option");
        visitor.visit_some(self.deeper()?)
    }

    fn deserialize_unit_struct<R: Visitor<'de>>(
        mut self,
        name: &'static str,
        visitor: R,
    ) -> Result<R::Value, Unknown> {
        self.note(name);
        visitor.visit_unit()
    }

    fn deserialize_newtype_struct<R: Visitor<'de>>(
        mut self,
        name: &'static str,
        visitor: R,
    ) -> Result<R::Value, Unknown> {
        self.note(name);
        visitor.visit_newtype_struct(self.deeper()?)
    }

    fn deserialize_seq<R: Visitor<'de>>(mut self, visitor: R) -> Result<R::Value, Unknown> {
        self.note("seq");
        visitor.visit_seq(Parts { probe: self.deeper()?, left: 1, fields: &[] })
    }

    fn deserialize_tuple<R: Visitor<'de>>(
        mut self,
        length: usize,
        visitor: R,
    ) -> Result<R::Value, Unknown> {
        self.note("tuple");
        visitor.visit_seq(Parts { probe: self.deeper()?, left: length, fields: &[] })
    }

    fn deserialize_tuple_struct<R: Visitor<'de>>(
        mut self,
        name: &'static str,
        length: usize,
        visitor: R,
    ) -> Result<R::Value, Unknown> {
        self.note(name);
        self.deserialize_tuple(length, visitor)
    }

    fn deserialize_map<R: Visitor<'de>>(mut self, visitor: R) -> Result<R::Value, Unknown> {
        self.note("map");
        visitor.visit_map(Parts { probe: self.deeper()?, left: 1, fields: &[] })
    }

    fn deserialize_struct<R: Visitor<'de>>(
        mut self,
        name: &'static str,
        fields: &'static [&'static str],
        visitor: R,
    ) -> Result<R::Value, Unknown> {
        self.note(name);
        for field in fields {
            self.note(field);
        }
        visitor.visit_map(Parts { probe: self.deeper()?, left: fields.len(), fields })
    }

    fn deserialize_enum<R: Visitor<'de>>(
        mut self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: R,
    ) -> Result<R::Value, Unknown> {
        self.note(name);
        for variant in variants {
            self.note(variant);
        }
        let first: StrDeserializer<'_, Unknown> =
            variants.first().copied().unwrap_or_default().into_deserializer();
        visitor.visit_enum(first)
    }

    fn deserialize_identifier<R: Visitor<'de>>(self, visitor: R) -> Result<R::Value, Unknown> {
        visitor.visit_str("")
    }
}

/// The elements of a sequence or the fields of a struct, each one a probe.
struct Parts<'a> {
    probe: Probe<'a>,
    left: usize,
    fields: &'static [&'static str],
}

impl Parts<'_> {
    fn next(&mut self) -> Option<&'static str> {
        let index = self.fields.len().checked_sub(self.left);
        self.left = self.left.checked_sub(1)?;
        Some(index.and_then(|index| self.fields.get(index)).copied().unwrap_or_default())
    }

    fn part(&mut self) -> Probe<'_> {
        Probe { notes: self.probe.notes, depth: self.probe.depth }
    }
}

impl<'de> de::SeqAccess<'de> for Parts<'_> {
    type Error = Unknown;

    fn next_element_seed<T: de::DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, Unknown> {
        match self.next() {
            Some(_) => seed.deserialize(self.part()).map(Some),
            None => Ok(None),
        }
    }
}

impl<'de> de::MapAccess<'de> for Parts<'_> {
    type Error = Unknown;

    fn next_key_seed<T: de::DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, Unknown> {
        let is_struct = !self.fields.is_empty();
        match self.next() {
            Some(field) if is_struct => {
                let field: StrDeserializer<'_, Unknown> = field.into_deserializer();
                seed.deserialize(field).map(Some)
            }
            Some(_) => seed.deserialize(self.part()).map(Some),
            None => Ok(None),
        }
    }

    fn next_value_seed<T: de::DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<T::Value, Unknown> {
        seed.deserialize(self.part())
    }
}

/// The probe has nothing more to say.
#[derive(Debug)]
struct Unknown;

impl fmt::Display for Unknown {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("the probe holds no value")
    }
}

impl std::error::Error for Unknown {}

impl de::Error for Unknown {
    fn custom<T: fmt::Display>(_: T) -> Self {
        Self
    }
}

#[cfg(test)]
mod tests {
    #![allow(dead_code, reason = "the types are only described, never read")]
    use super::fingerprint;
    use serde::Deserialize;

    mod before {
        use super::*;
        #[derive(Deserialize)]
        pub(super) struct User {
            name: String,
            age: u32,
            home: Home,
            past: Vec<Home>,
        }
        #[derive(Deserialize)]
        pub(super) struct Home {
            city: Option<String>,
        }
    }

    mod same {
        use super::*;
        #[derive(Deserialize)]
        pub(super) struct User {
            name: String,
            age: u32,
            home: Home,
            past: Vec<Home>,
        }
        #[derive(Deserialize)]
        pub(super) struct Home {
            city: Option<String>,
        }
    }

    mod after {
        use super::*;
        #[derive(Deserialize)]
        pub(super) struct User {
            name: String,
            age: u32,
            home: Home,
            past: Vec<Home>,
        }
        #[derive(Deserialize)]
        pub(super) struct Home {
            city: Option<u64>,
        }
    }

    #[derive(Deserialize)]
    struct Tree {
        children: Vec<Self>,
    }

    #[test]
    fn the_same_declaration_has_the_same_fingerprint() {
        assert_eq!(fingerprint::<before::User>(), fingerprint::<same::User>());
    }

    #[test]
    fn another_type_deep_inside_changes_it() {
        assert_ne!(fingerprint::<before::User>(), fingerprint::<after::User>());
        assert_ne!(fingerprint::<u32>(), fingerprint::<u64>());
        assert_ne!(fingerprint::<Vec<String>>(), fingerprint::<Vec<u8>>());
    }

    #[test]
    fn a_type_that_holds_itself_comes_to_an_end() {
        assert_eq!(fingerprint::<Tree>(), fingerprint::<Tree>());
    }
}
