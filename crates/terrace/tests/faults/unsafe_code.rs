//! What the sources must not contain: unsafe code, and dependencies that are not allowed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Written in two parts, for those who search for it.
const UNSAFE: &str = concat!("un", "safe");

/// The one crate that may.
const ENGINE: &str = "crates/terrace-memory";

#[test]
fn x19_no_unsafe_outside_terrace_memory() {
    let root = root();
    let mut looked_at = 0;
    // Tests, examples, benchmarks and fuzz targets, too.
    for file in sources(&root) {
        if file.starts_with(root.join(ENGINE)) {
            continue;
        }
        looked_at += 1;
        let text = fs::read_to_string(&file).unwrap();
        for word in words(&text) {
            assert_ne!(word.text, UNSAFE, "{}:{}", file.display(), word.line);
        }
    }
    assert!(looked_at > 60, "only {looked_at} files: are these the sources?");
}

/// So that the compiler says it, too, in whatever a macro makes.
#[test]
fn x19_every_other_crate_forbids_unsafe_code() {
    let mut roots = Vec::new();
    for folder in fs::read_dir(root().join("crates")).unwrap() {
        let folder = folder.unwrap().path();
        let crate_roots = ["src/lib.rs", "src/main.rs"].map(|name| folder.join(name));
        let crate_roots: Vec<_> = crate_roots.into_iter().filter(|root| root.exists()).collect();
        assert!(!crate_roots.is_empty(), "{} has no crate", folder.display());
        if !folder.ends_with(ENGINE) {
            roots.extend(crate_roots);
        }
    }
    assert!(roots.len() >= 3, "{roots:?}");
    for root in roots {
        let text = fs::read_to_string(&root).unwrap();
        let words = words(&text);
        let forbids = words
            .windows(2)
            .any(|pair| pair[0].text == "forbid" && pair[1].text == format!("{UNSAFE}_code"));
        assert!(forbids, "{} does not forbid it", root.display());
    }
}

#[test]
fn x19_only_dependencies_that_are_allowed() {
    // The scoreboard and ./scripts/test install it; without it nothing is proven.
    let checked = Command::new("cargo")
        .args(["deny", "check", "bans", "licenses", "sources"])
        .current_dir(root())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&checked.stderr);
    assert!(checked.status.success(), "cargo install cargo-deny, or see what it found: {said}");
}

#[test]
fn words_are_told_from_comments_and_texts() {
    let texts =
        |source: &str| -> Vec<String> { words(source).into_iter().map(|word| word.text).collect() };
    let hidden = r####"
        // word
        /* word /* word */ word */
        "word \" word // " 'w' '\'' '"' b'"' b"word" r"word \" r#"word " word"# br##"word"# "##
        c"word" '\u{77}'
    "####;
    assert_eq!(texts(hidden), Vec::<String>::new());
    assert_eq!(texts("\"//\"; word"), ["word"], "no comment begins in a text");
    assert_eq!(texts("/*\"*/ word /*\"*/"), ["word"], "no text begins in a comment");
    assert_eq!(texts("'a: word<'b>"), ["word"], "lifetimes are no letters");
    assert_eq!(texts("'\"' word '\"'"), ["word"]);
    assert_eq!(texts("r#word raw\"word\" word_code"), ["word", "raw", "word_code"]);
    let second = &words("one\n\"\n\"\ntwo")[1];
    assert_eq!((&*second.text, second.line), ("two", 4));
}

pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

/// Every Rust file below `folder` that is ours.
pub(crate) fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() {
            if name != "target" && !name.starts_with('.') {
                files.extend(sources(&path));
            }
        } else if name.ends_with(".rs") {
            files.push(path);
        }
    }
    files
}

/// A word of a program: a keyword, a name or a number.
#[derive(Debug)]
pub(crate) struct Word {
    pub(crate) text: String,
    pub(crate) line: usize,
}

/// The words of a source, without those in comments and texts.
pub(crate) fn words(source: &str) -> Vec<Word> {
    let mut words = Vec::new();
    let mut rest = source;
    while let Some(first) = rest.chars().next() {
        let length = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            comment(rest)
        } else if let Some(length) = raw_text(rest).or_else(|| text(rest)).or_else(|| letter(rest))
        {
            length
        } else if first.is_alphanumeric() || first == '_' {
            let name = rest.strip_prefix("r#").unwrap_or(rest);
            let length = name
                .find(|letter: char| !letter.is_alphanumeric() && letter != '_')
                .unwrap_or(name.len());
            let line = source[..source.len() - rest.len()].matches('\n').count() + 1;
            words.push(Word { text: name[..length].to_owned(), line });
            rest.len() - name.len() + length
        } else if first == '\'' {
            // A lifetime: its name is no word.
            let name = &rest[1..];
            1 + name.find(|letter: char| !letter.is_alphanumeric() && letter != '_').unwrap_or(0)
        } else {
            first.len_utf8()
        };
        rest = &rest[length..];
    }
    words
}

/// The length of a block comment; they nest.
fn comment(source: &str) -> usize {
    let mut depth = 0_usize;
    let mut at = 0;
    while at < source.len() {
        let rest = &source.as_bytes()[at..];
        if rest.starts_with(b"/*") {
            depth += 1;
            at += 2;
        } else if rest.starts_with(b"*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += 1;
        }
    }
    source.len()
}

/// The length of a text such as `r#"…"#`.
fn raw_text(source: &str) -> Option<usize> {
    let opening = ["r", "br", "cr"].into_iter().find_map(|prefix| source.strip_prefix(prefix))?;
    let hashes = opening.len() - opening.trim_start_matches('#').len();
    let inside = opening[hashes..].strip_prefix('"')?;
    let closing = format!("\"{}", "#".repeat(hashes));
    let end = inside.find(&closing).map_or(inside.len(), |end| end + closing.len());
    Some(source.len() - inside.len() + end)
}

/// The length of a text such as `"…"`.
fn text(source: &str) -> Option<usize> {
    let opening = ["b", "c"]
        .into_iter()
        .find_map(|prefix| source.strip_prefix(prefix).filter(|rest| rest.starts_with('"')));
    let inside = opening.unwrap_or(source).strip_prefix('"')?;
    Some(source.len() - inside.len() + closing(inside, '"'))
}

/// The length of a letter such as `'x'`; `None` for a lifetime.
fn letter(source: &str) -> Option<usize> {
    let inside = source.strip_prefix("b'").or_else(|| source.strip_prefix('\''))?;
    let mut letters = inside.chars();
    let first = letters.next()?;
    let is_letter = first == '\\' || letters.next() == Some('\'');
    is_letter.then(|| source.len() - inside.len() + closing(inside, '\''))
}

/// Where what began with `mark` has ended, marks behind a backslash left out.
fn closing(inside: &str, mark: char) -> usize {
    let mut is_escaped = false;
    for (at, letter) in inside.char_indices() {
        if letter == mark && !is_escaped {
            return at + letter.len_utf8();
        }
        is_escaped = letter == '\\' && !is_escaped;
    }
    inside.len()
}
