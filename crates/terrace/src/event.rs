//! The **event**: something that happened at the source, by its name, and what it invalidates.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::core::Core;
use crate::error::{BuildError, Error};
use crate::glob::Glob;
use crate::key::space_name;
use crate::sweep;
use crate::target::{self, Target};
use crate::tenant::TenantName;
use crate::write::Settled;

/// What is invalidated when something happens: declared once, where the cache is
/// [built](crate::Builder::event), and [raised](crate::Terrace::raise) from anywhere.
///
/// `{parameter}` in a text stands for what the event is raised with; `{{` and `}}` are braces.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use terrace::{Event, Memory, Terrace};
///
/// let updated = Event::new("emission.updated")
///     .key_of_parts("emission", ["{company}", "{year}"])
///     .tag("total:{company}")
///     .prefix_of_parts("report", ["{year}"]);
/// let terrace = Terrace::builder().memory(Memory::bytes(1 << 20)).event(updated).build().await?;
///
/// let emissions = terrace.space::<(String, u16), f64>("emission").build()?;
/// let totals = terrace.space::<str, f64>("total").build()?;
/// emissions.insert(&("TSLA".into(), 2023), 1.9).await?;
/// emissions.insert(&("TSLA".into(), 2022), 1.7).await?;
/// totals.insert("TSLA", 3.6).tags(["total:TSLA"]).await?;
///
/// terrace.raise("emission.updated", [("company", "TSLA"), ("year", "2023")]).await?;
/// assert!(emissions.get(&("TSLA".into(), 2023)).await?.is_none());
/// assert!(emissions.get(&("TSLA".into(), 2022)).await?.is_some());
/// assert!(totals.get("TSLA").await?.is_none());
///
/// let missing = terrace.raise("emission.updated", [("company", "TSLA")]).await;
/// assert!(matches!(missing, Err(terrace::Error::MissingParameter { .. })));
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
#[must_use = "an event is declared to a builder"]
pub struct Event {
    name: String,
    rules: Vec<Rule>,
    wrong: Option<&'static str>,
}

/// One thing that an event invalidates.
#[derive(Clone, Debug)]
enum Rule {
    Key(String, Template),
    KeyOfParts(String, Vec<Template>),
    Prefix(String, Template),
    PrefixOfParts(String, Vec<Template>),
    Pattern(String, Template),
    Tag(Template),
    Space(String),
}

impl Event {
    /// An event that invalidates nothing yet.
    pub fn new(name: &str) -> Self {
        Self { name: name.into(), rules: Vec::new(), wrong: None }
    }

    /// It invalidates the key of this text in a space; the empty space is that of dynamic keys.
    pub fn key(self, space: &str, key: &str) -> Self {
        self.with([key], |key| Rule::Key(space.into(), only(key)))
    }

    /// It invalidates the key that is a tuple of these.
    pub fn key_of_parts<const N: usize>(self, space: &str, parts: [&str; N]) -> Self {
        self.with(parts, |parts| Rule::KeyOfParts(space.into(), parts))
    }

    /// It invalidates every key that begins with this text.
    pub fn prefix(self, space: &str, prefix: &str) -> Self {
        self.with([prefix], |prefix| Rule::Prefix(space.into(), only(prefix)))
    }

    /// It invalidates every key that is a longer tuple, and begins with these.
    pub fn prefix_of_parts<const N: usize>(self, space: &str, parts: [&str; N]) -> Self {
        self.with(parts, |parts| Rule::PrefixOfParts(space.into(), parts))
    }

    /// It removes every key that matches the pattern: see
    /// [`Space::remove_pattern`](crate::Space::remove_pattern) for what one is, and what it costs.
    /// Parameters stand for themselves, whatever is in them.
    pub fn pattern(self, space: &str, pattern: &str) -> Self {
        self.with([pattern], |pattern| Rule::Pattern(space.into(), only(pattern)))
    }

    /// It invalidates every entry that carries this tag.
    pub fn tag(self, tag: &str) -> Self {
        self.with([tag], |tag| Rule::Tag(only(tag)))
    }

    /// It invalidates every entry of a space.
    pub fn space(self, space: &str) -> Self {
        self.with([], |_| Rule::Space(space.into()))
    }

    fn with<const N: usize>(
        mut self,
        texts: [&str; N],
        rule: impl FnOnce(Vec<Template>) -> Rule,
    ) -> Self {
        match texts.into_iter().map(Template::parse).collect() {
            Ok(templates) => self.rules.push(rule(templates)),
            Err(wrong) => self.wrong = Some(wrong),
        }
        self
    }
}

fn only(templates: Vec<Template>) -> Template {
    templates.into_iter().next().unwrap_or_default()
}

/// A text with places for parameters.
#[derive(Clone, Debug, Default)]
struct Template(Vec<Piece>);

#[derive(Clone, Debug)]
enum Piece {
    Text(String),
    Parameter(String),
}

impl Template {
    fn parse(text: &str) -> Result<Self, &'static str> {
        const UNPAIRED: &str =
            "a brace has no other: write {{ or }} for one that stands for itself";
        let (mut pieces, mut plain) = (Vec::new(), String::new());
        let mut rest = text.chars().peekable();
        while let Some(character) = rest.next() {
            match character {
                '{' | '}' if rest.peek() == Some(&character) => {
                    plain.push(character);
                    rest.next();
                }
                '}' => return Err(UNPAIRED),
                '{' => {
                    let mut name = String::new();
                    loop {
                        match rest.next() {
                            Some('}') => break,
                            Some('{') | None => return Err(UNPAIRED),
                            Some(character) => name.push(character),
                        }
                    }
                    if name.is_empty() {
                        return Err("a parameter has no name");
                    }
                    pieces.push(Piece::Text(std::mem::take(&mut plain)));
                    pieces.push(Piece::Parameter(name));
                }
                character => plain.push(character),
            }
        }
        pieces.push(Piece::Text(plain));
        Ok(Self(pieces))
    }
}

/// What an event is raised with.
struct Raised<'a> {
    event: &'a str,
    parameters: BTreeMap<&'a str, String>,
}

impl Raised<'_> {
    /// The text with each parameter in its place, as `write` writes it.
    fn fill(
        &self,
        Template(pieces): &Template,
        write: impl Fn(&str, &mut String),
    ) -> Result<String, Error> {
        let mut text = String::new();
        for piece in pieces {
            match piece {
                Piece::Text(plain) => text.push_str(plain),
                Piece::Parameter(name) => {
                    let value = self.parameters.get(name.as_str());
                    let missing = || Error::MissingParameter {
                        event: self.event.into(),
                        parameter: name.clone(),
                    };
                    write(value.ok_or_else(missing)?, &mut text);
                }
            }
        }
        Ok(text)
    }

    fn text(&self, template: &Template) -> Result<String, Error> {
        self.fill(template, |value, text| text.push_str(value))
    }

    fn texts(&self, templates: &[Template]) -> Result<Vec<String>, Error> {
        templates.iter().map(|template| self.text(template)).collect()
    }

    fn pattern(&self, template: &Template) -> Result<String, Error> {
        self.fill(template, Glob::escape)
    }
}

/// The events that a cache knows.
#[derive(Debug, Default)]
pub(crate) struct Events {
    rules: BTreeMap<String, Vec<Rule>>,
}

impl Events {
    pub(crate) fn declared(events: Vec<Event>) -> Result<Self, BuildError> {
        let (mut rules, mut names) = (BTreeMap::new(), BTreeSet::new());
        for event in events {
            let wrong = match event.wrong {
                None if event.name.is_empty() => Some("it has no name"),
                None if !names.insert(event.name.clone()) => Some("it is declared twice"),
                wrong => wrong,
            };
            if let Some(reason) = wrong {
                return Err(BuildError::Event { event: event.name, reason });
            }
            rules.insert(event.name, event.rules);
        }
        Ok(Self { rules })
    }
}

/// Invalidates what an event says: all that needs no search in one exchange, then what does.
pub(crate) async fn raise<'a, V: Into<String>>(
    core: &Arc<Core>,
    tenant: &TenantName,
    event: &'a str,
    parameters: impl IntoIterator<Item = (&'a str, V)>,
) -> Result<Settled, Error> {
    let rules = core.events.rules.get(event).ok_or_else(|| Error::NoSuchEvent(event.into()))?;
    let parameters = parameters.into_iter().map(|(name, value)| (name, value.into())).collect();
    let raised = Raised { event, parameters };
    let (mut targets, mut patterns) = (Vec::new(), Vec::new());
    for rule in rules {
        targets.push(match rule {
            Rule::Key(space, key) => Target::key(space, &raised.text(key)?),
            Rule::KeyOfParts(space, parts) => Target::key_of_parts(space, raised.texts(parts)?),
            Rule::Prefix(space, prefix) => Target::prefix(space, &raised.text(prefix)?),
            Rule::PrefixOfParts(space, parts) => {
                Target::prefix_of_parts(space, raised.texts(parts)?)
            }
            Rule::Tag(tag) => Target::tag(&raised.text(tag)?),
            Rule::Space(space) => Target::space(space),
            Rule::Pattern(space, pattern) => {
                patterns.push((space, raised.pattern(pattern)?));
                continue;
            }
        });
    }
    let mut settled = target::invalidate(core, tenant, targets).await?;
    for (space, pattern) in patterns {
        let removed =
            sweep::remove(core, space_name(tenant.as_str(), space), &pattern, false).await?;
        if settled.is_settled() {
            settled = removed.settled;
        }
    }
    Ok(settled)
}

/// Reads `text` as a template and fills it: nothing is lost, and what is put in stands for itself.
#[cfg(any(test, fuzzing))]
#[allow(clippy::expect_used, reason = "in no build but those of tests")]
pub(crate) fn fuzz(text: &str) {
    let Ok(template) = Template::parse(text) else { return };
    let names = template.0.iter().filter_map(|piece| match piece {
        Piece::Parameter(name) => Some((name.as_str(), "{v}*".to_owned())),
        Piece::Text(_) => None,
    });
    let raised = Raised { event: "e", parameters: names.collect() };
    let filled = raised.text(&template).expect("every parameter is given");
    let expected: String = template
        .0
        .iter()
        .map(|piece| match piece {
            Piece::Parameter(_) => "{v}*",
            Piece::Text(text) => text.as_str(),
        })
        .collect();
    assert_eq!(filled, expected);
    let pattern = raised.pattern(&template).expect("every parameter is given");
    if template.0.iter().all(|piece| matches!(piece, Piece::Parameter(_)))
        && let Ok(glob) = Glob::parse(&pattern)
    {
        assert!(glob.matches(filled.as_bytes()));
    }
    let none = Raised { event: "e", parameters: BTreeMap::new() };
    assert_eq!(none.text(&template).is_err(), !raised.parameters.is_empty());
}
