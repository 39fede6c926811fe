//! Events: what an event says is invalidated, all of it and nothing else.

use terrace::{BuildError, Error, Event, Memory, Target, Terrace, Tier};
use terrace_test::MapStore;

use crate::support::{Bed, Everywhere as _, Layout, twins};

async fn terrace_with(events: impl IntoIterator<Item = Event>) -> Result<Terrace, BuildError> {
    let builder =
        Terrace::builder().memory(Memory::bytes(1 << 20)).tier("map", Tier::of(MapStore::new()));
    events.into_iter().fold(builder, terrace::Builder::event).build().await
}

#[tokio::test]
async fn an_event_invalidates_what_it_says_and_nothing_else() {
    let updated = Event::new("emission.updated")
        .key("", "company:{company}")
        .key_of_parts("emission", ["{company}", "{year}"])
        .prefix("note", "{company}/")
        .prefix_of_parts("report", ["{year}"])
        .pattern("chart", "*:{company}:[0-9]")
        .tag("total:{company}")
        .space("summary");
    let terrace = terrace_with([updated]).await.unwrap();
    let emissions = terrace.space::<(String, u16), u64>("emission").build().unwrap();
    let reports = terrace.space::<(u16, String), u64>("report").build().unwrap();
    let texts = ["note", "chart", "summary", "total"]
        .map(|name| terrace.space::<str, u64>(name).build().unwrap());
    let [notes, charts, summaries, totals] = &texts;

    // Odd enough to be a part, a pattern and a prefix of something else, if it could.
    for company in ["TSLA", "A:B", "*", "[ab]", "%3A", "\\", "?", "{company}"] {
        let other = format!("{company}x");
        let fill = async |company: &str| {
            terrace.set(&format!("company:{company}"), &1).await.everywhere();
            emissions.insert(&(company.into(), 2023), 1).await.everywhere();
            notes.insert(&format!("{company}/1"), 1).await.everywhere();
            charts.insert(&format!("pie:{company}:7"), 1).await.everywhere();
            totals.insert(company, 1).tags([format!("total:{company}")]).await.everywhere();
        };
        let there = async |company: &str| {
            [
                terrace.exists(&format!("company:{company}")).await.unwrap(),
                emissions.exists(&(company.into(), 2023)).await.unwrap(),
                notes.exists(&format!("{company}/1")).await.unwrap(),
                charts.exists(&format!("pie:{company}:7")).await.unwrap(),
                totals.exists(company).await.unwrap(),
            ]
        };
        fill(company).await;
        fill(&other).await;
        emissions.insert(&(company.into(), 2022), 1).await.everywhere();
        for year in [2022, 2023] {
            reports.insert(&(year, "all".into()), 1).await.everywhere();
        }
        summaries.insert("all", 1).await.everywhere();

        let parameters = [("company", company), ("year", "2023"), ("unused", "x")];
        terrace.raise("emission.updated", parameters).await.everywhere();
        assert_eq!(there(company).await, [false; 5], "{company:?}");
        assert_eq!(there(&other).await, [true; 5], "{other:?}");
        assert!(emissions.exists(&(company.into(), 2022)).await.unwrap());
        assert!(!reports.exists(&(2023, "all".into())).await.unwrap());
        assert!(reports.exists(&(2022, "all".into())).await.unwrap());
        assert!(!summaries.exists("all").await.unwrap());
    }
}

#[tokio::test]
async fn what_is_missing_is_an_error_and_nothing_is_invalidated() {
    let event = || Event::new("updated").key("", "a").tag("tag:{id}");
    let terrace = terrace_with([event()]).await.unwrap();
    terrace.set("a", &1).await.everywhere();
    let missing = terrace.raise("updated", [("ID", "7")]).await;
    match missing {
        Err(Error::MissingParameter { event, parameter }) => {
            assert_eq!((event.as_str(), parameter.as_str()), ("updated", "id"));
        }
        other => panic!("{other:?}"),
    }
    let unknown = terrace.raise("deleted", [("id", "7")]).await;
    assert!(matches!(unknown, Err(Error::NoSuchEvent(name)) if name == "deleted"));
    let empty = terrace.raise("updated", [("id", "x".repeat(300))]).await;
    assert!(matches!(empty, Err(Error::Tags(_))));
    assert!(terrace.exists("a").await.unwrap());

    for wrong in ["{", "}", "{id", "{}", "{a{b}}"] {
        let built = terrace_with([Event::new("updated").key("", wrong)]).await;
        assert!(matches!(built, Err(BuildError::Event { .. })), "{wrong}");
    }
    assert!(matches!(terrace_with([event(), event()]).await, Err(BuildError::Event { .. })));
    assert!(matches!(terrace_with([Event::new("")]).await, Err(BuildError::Event { .. })));
    let braces = terrace_with([Event::new("braces").key("", "{{a}}")]).await.unwrap();
    braces.set("{a}", &1).await.everywhere();
    let none: [(&str, &str); 0] = [];
    braces.raise("braces", none).await.everywhere();
    assert!(!braces.exists("{a}").await.unwrap());
}

/// Whoever invalidates need not know what is there: another program, for one.
#[tokio::test]
async fn targets_reach_spaces_that_are_not_open_here() {
    let directory = tempfile::tempdir().unwrap();
    let [one, two] = twins(&directory).await;
    let pairs = one.space::<(String, u16), u64>("pair").build().unwrap();
    let texts = one.space::<str, u64>("text").build().unwrap();
    let fill = async || {
        pairs.insert(&("a:b".into(), 1), 1).await.everywhere();
        texts.insert("key", 1).tags(["tag"]).await.everywhere();
    };
    let targets: [(Target, [bool; 2]); 7] = [
        (Target::key_of_parts("pair", ["a:b", "1"]), [false, true]),
        (Target::prefix_of_parts("pair", ["a:b"]), [false, true]),
        (Target::key("text", "key"), [true, false]),
        (Target::prefix("text", "k"), [true, false]),
        (Target::tag("tag"), [true, false]),
        (Target::space("pair"), [false, true]),
        (Target::everything(), [false, false]),
    ];
    for (target, expected) in targets {
        fill().await;
        two.invalidate_all([target.clone()]).await.everywhere();
        crate::support::eventually(&format!("{target:?} is heard"), async || {
            let pair = pairs.get(&("a:b".into(), 1)).await.unwrap().is_some();
            [pair, texts.get("key").await.unwrap().is_some()] == expected
        })
        .await;
    }
    let bed = Bed::new(Layout::MemoryAndMap).await;
    let long = "x".repeat(70_000);
    let failed = bed.invalidate_all([Target::tag("tag"), Target::key("", &long)]).await;
    assert!(matches!(failed, Err(Error::KeyTooLong { .. })));
}
