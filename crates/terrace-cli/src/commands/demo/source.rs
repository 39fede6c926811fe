//! The slow source of the demonstration: a SQLite file of the world's airports, and three real
//! queries on it, from a cheap one (one row by its key) to a dear one (a distance for every row).

use std::ffi::OsString;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result, ensure};
use csv::StringRecord;
use rusqlite::functions::FunctionFlags;
use rusqlite::{Connection, OpenFlags, OptionalExtension, Row, params, params_from_iter};
use serde::{Deserialize, Serialize};

/// The airports, compressed; `data/README.md` says where they come from.
const DATA: &[u8] = include_bytes!("../../../data/airports.csv.zst");

/// How many airports [`DATA`] holds.
pub(crate) const ROWS: u64 = 28_298;

/// Marks a database file as one that [`Source::create`] made ("TERR").
const APPLICATION_ID: i64 = 0x5445_5252;

/// The version of the tables below; a file of another version is refused.
const SCHEMA_VERSION: i64 = 1;

/// How many idle connections are kept for the next query. More are opened on demand and closed
/// after use.
const MAX_IDLE: usize = 16;

/// How many rows are inserted between two reports of progress.
const PROGRESS_EVERY: u64 = 256;

/// The mean radius of the earth (IUGG), in kilometres.
const EARTH_RADIUS_KM: f64 = 6371.0088;

const SCHEMA: &str = "
    CREATE TABLE airport (
        icao         TEXT PRIMARY KEY,
        iata         TEXT,
        name         TEXT NOT NULL,
        city         TEXT,
        region       TEXT,
        country      TEXT NOT NULL,
        elevation_ft REAL NOT NULL,
        latitude     REAL NOT NULL,
        longitude    REAL NOT NULL,
        time_zone    TEXT NOT NULL,
        lid          TEXT
    ) STRICT;
    CREATE INDEX airport_country ON airport (country);
    CREATE INDEX airport_iata ON airport (iata) WHERE iata IS NOT NULL;
";

const INSERT: &str = "
    INSERT INTO airport VALUES (
        ?1, nullif(?2, ''), ?3, nullif(?4, ''), nullif(?5, ''), ?6, ?7, ?8, ?9, ?10, nullif(?11, '')
    )";

const AIRPORT: &str = "SELECT * FROM airport WHERE icao = ?1";

// NOT INDEXED: left to itself, SQLite walks an index and looks every row up through it, which takes
// an eighth longer. A source slower than it has to be would flatter the cache.
const NEAREST: &str = "
    SELECT there.icao, there.iata, there.name, there.city, there.country,
           great_circle_km(here.latitude, here.longitude, there.latitude, there.longitude) AS km
    FROM airport AS here JOIN airport AS there NOT INDEXED
    WHERE here.icao = ?1 AND there.icao <> here.icao
    ORDER BY km, there.icao
    LIMIT ?2";

const BY_REGION: &str = "
    SELECT region, count(*) AS airports FROM airport
    WHERE country = ?1 GROUP BY region ORDER BY airports DESC, region";

const BY_TIME_ZONE: &str = "
    SELECT time_zone, count(*) AS airports FROM airport
    WHERE country = ?1 GROUP BY time_zone ORDER BY airports DESC, time_zone";

const HIGHEST: &str = "
    SELECT * FROM airport WHERE country = ?1 ORDER BY elevation_ft DESC, icao LIMIT 1";

const NORTHERNMOST: &str = "
    SELECT * FROM airport WHERE country = ?1 ORDER BY latitude DESC, icao LIMIT 1";

const TOTAL: &str = "SELECT count(*) FROM airport WHERE country = ?1";

/// One airport, with everything that is known about it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Airport {
    /// The ICAO code, or the local identifier where there is none; unique.
    pub(crate) icao: String,
    /// The IATA code.
    pub(crate) iata: Option<String>,
    /// The name of the airport.
    pub(crate) name: String,
    /// The city or town that it serves.
    pub(crate) city: Option<String>,
    /// The state, region or other subdivision of the country.
    pub(crate) region: Option<String>,
    /// The country, an ISO 3166-1 alpha-2 code.
    pub(crate) country: String,
    /// The elevation above mean sea level, in feet.
    pub(crate) elevation_ft: f64,
    /// The latitude in degrees, north positive.
    pub(crate) latitude: f64,
    /// The longitude in degrees, east positive.
    pub(crate) longitude: f64,
    /// The name of the time zone.
    pub(crate) time_zone: String,
    /// The local identifier, mostly of the FAA.
    pub(crate) lid: Option<String>,
}

/// The airports nearest to one, the nearest first.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Nearest {
    /// The airport from which the distances are measured.
    pub(crate) icao: String,
    /// Its neighbours; none if there is no such airport.
    pub(crate) neighbours: Vec<Neighbour>,
}

/// An airport and how far away it is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Neighbour {
    /// The ICAO code.
    pub(crate) icao: String,
    /// The IATA code.
    pub(crate) iata: Option<String>,
    /// The name of the airport.
    pub(crate) name: String,
    /// The city or town that it serves.
    pub(crate) city: Option<String>,
    /// The country, an ISO 3166-1 alpha-2 code.
    pub(crate) country: String,
    /// The great-circle distance in kilometres.
    pub(crate) km: f64,
}

/// The airports of a country in numbers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Report {
    /// The country, an ISO 3166-1 alpha-2 code.
    pub(crate) country: String,
    /// How many airports it has.
    pub(crate) total: u32,
    /// How many by state or region, the most first.
    pub(crate) regions: Vec<Count>,
    /// How many by time zone, the most first.
    pub(crate) time_zones: Vec<Count>,
    /// The highest one.
    pub(crate) highest: Option<Airport>,
    /// The northernmost one.
    pub(crate) northernmost: Option<Airport>,
}

/// One group of a [`Report`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Count {
    /// The region or time zone; `None` for the airports whose region is unknown.
    pub(crate) name: Option<String>,
    /// How many airports it has.
    pub(crate) airports: u32,
}

/// The database. Clones share their connections and their counter, and may be used from any
/// thread.
#[derive(Clone, Debug)]
pub(crate) struct Source {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    path: PathBuf,
    idle: Mutex<Vec<Connection>>,
    queries: AtomicU64,
}

impl Source {
    /// Makes the database file at `path` from the built-in data and opens it. `progress` is told
    /// how many rows of how many are in.
    ///
    /// The file gets its name only when it is complete, so whatever is found at `path` later is
    /// either whole or not ours. A file that is already there is left alone, with an error.
    pub(crate) fn create(path: &Path, progress: &mut dyn FnMut(u64, u64)) -> Result<Self> {
        ensure!(!path.exists(), "{} already exists", path.display());
        let mut part = OsString::from(path);
        part.push(".part");
        let part = PathBuf::from(part);
        let made = fill(&part, progress)
            .and_then(|()| fs::rename(&part, path).map_err(Into::into))
            .with_context(|| format!("cannot create the database {}", path.display()));
        if made.is_err() {
            // Best effort: the reason for the failure is worth more than one for this.
            let _ = fs::remove_file(&part);
        }
        made?;
        Self::open(path)
    }

    /// Opens a database that [`create`](Self::create) made, read only.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let connection = connect(path)?;
        let shared = Shared {
            path: path.to_owned(),
            idle: Mutex::new(vec![connection]),
            queries: AtomicU64::new(0),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// The airport with this code: one row by its key.
    pub(crate) fn airport(&self, icao: &str) -> Result<Option<Airport>> {
        self.query(|connection| {
            connection.prepare_cached(AIRPORT)?.query_row([icao], airport).optional()
        })
    }

    /// The `limit` airports nearest to this one: a distance for every row of the table.
    pub(crate) fn nearest(&self, icao: &str, limit: u32) -> Result<Nearest> {
        self.query(|connection| {
            let neighbours = connection
                .prepare_cached(NEAREST)?
                .query_map(params![icao, limit], neighbour)?
                .collect::<rusqlite::Result<_>>()?;
            Ok(Nearest { icao: icao.to_owned(), neighbours })
        })
    }

    /// The airports of this country in numbers: groups, counts and extremes.
    pub(crate) fn report(&self, country: &str) -> Result<Report> {
        self.query(|connection| {
            Ok(Report {
                country: country.to_owned(),
                total: connection.prepare_cached(TOTAL)?.query_row([country], |row| row.get(0))?,
                regions: counts(connection, BY_REGION, country)?,
                time_zones: counts(connection, BY_TIME_ZONE, country)?,
                highest: connection
                    .prepare_cached(HIGHEST)?
                    .query_row([country], airport)
                    .optional()?,
                northernmost: connection
                    .prepare_cached(NORTHERNMOST)?
                    .query_row([country], airport)
                    .optional()?,
            })
        })
    }

    /// How many queries were begun, on all clones together: calls of [`airport`](Self::airport),
    /// [`nearest`](Self::nearest) and [`report`](Self::report).
    pub(crate) fn queries(&self) -> u64 {
        self.shared.queries.load(Ordering::Relaxed)
    }

    /// All ICAO codes, in their order. Not counted as a query.
    pub(crate) fn codes(&self) -> Result<Vec<String>> {
        self.with(|connection| strings(connection, "SELECT icao FROM airport ORDER BY icao"))
    }

    /// All countries, in their order. Not counted as a query.
    pub(crate) fn countries(&self) -> Result<Vec<String>> {
        self.with(|connection| {
            strings(connection, "SELECT DISTINCT country FROM airport ORDER BY country")
        })
    }

    /// Runs a query that counts.
    fn query<T>(&self, run: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T> {
        self.shared.queries.fetch_add(1, Ordering::Relaxed);
        self.with(run)
    }

    /// Runs something on an idle connection, or on a new one if all are busy.
    fn with<T>(&self, run: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T> {
        let connection = match self.idle().pop() {
            Some(connection) => connection,
            None => connect(&self.shared.path)?,
        };
        let result = run(&connection);
        let mut idle = self.idle();
        if idle.len() < MAX_IDLE {
            idle.push(connection);
        }
        Ok(result?)
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Connection>> {
        self.shared.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Opens a finished database, makes sure that it is one, and teaches it to measure distances.
fn connect(path: &Path) -> Result<Connection> {
    let open = || {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(path, flags)?;
        let pragma = |name| connection.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
        let (application, version) = (pragma("application_id")?, pragma("user_version")?);
        ensure!(application == APPLICATION_ID, "not a database made by `terrace demo`");
        ensure!(version == SCHEMA_VERSION, "made by another version of `terrace demo`");
        connection.create_scalar_function(
            "great_circle_km",
            4,
            FunctionFlags::SQLITE_UTF8
                | FunctionFlags::SQLITE_DETERMINISTIC
                | FunctionFlags::SQLITE_INNOCUOUS,
            |call| Ok(great_circle_km(call.get(0)?, call.get(1)?, call.get(2)?, call.get(3)?)),
        )?;
        Ok(connection)
    };
    open().with_context(|| format!("cannot open the database {}", path.display()))
}

/// Makes a new database file with all airports, in one transaction.
fn fill(path: &Path, progress: &mut dyn FnMut(u64, u64)) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    let mut connection = Connection::open(path)?;
    // An incomplete file is thrown away as a whole, so nothing is ever rolled back.
    connection.pragma_update(None, "journal_mode", "off")?;
    connection.pragma_update(None, "application_id", APPLICATION_ID)?;
    connection.pragma_update(None, "user_version", SCHEMA_VERSION)?;

    let mut airports = csv::Reader::from_reader(zstd::stream::read::Decoder::new(DATA)?);
    let transaction = connection.transaction()?;
    transaction.execute_batch(SCHEMA)?;
    let mut insert = transaction.prepare(INSERT)?;
    let mut record = StringRecord::new();
    let mut done = 0;
    progress(done, ROWS);
    while airports.read_record(&mut record)? {
        insert.execute(params_from_iter(&record))?;
        done += 1;
        if done % PROGRESS_EVERY == 0 {
            progress(done, ROWS);
        }
    }
    ensure!(done == ROWS, "the built-in data has {done} airports instead of {ROWS}");
    drop(insert);
    transaction.commit()?;
    connection.close().map_err(|(_, error)| error)?;
    progress(done, ROWS);
    Ok(())
}

/// Reads a whole row of the table.
fn airport(row: &Row<'_>) -> rusqlite::Result<Airport> {
    Ok(Airport {
        icao: row.get(0)?,
        iata: row.get(1)?,
        name: row.get(2)?,
        city: row.get(3)?,
        region: row.get(4)?,
        country: row.get(5)?,
        elevation_ft: row.get(6)?,
        latitude: row.get(7)?,
        longitude: row.get(8)?,
        time_zone: row.get(9)?,
        lid: row.get(10)?,
    })
}

/// Reads a row of [`NEAREST`].
fn neighbour(row: &Row<'_>) -> rusqlite::Result<Neighbour> {
    Ok(Neighbour {
        icao: row.get(0)?,
        iata: row.get(1)?,
        name: row.get(2)?,
        city: row.get(3)?,
        country: row.get(4)?,
        km: row.get(5)?,
    })
}

/// Runs [`BY_REGION`] or [`BY_TIME_ZONE`].
fn counts(connection: &Connection, sql: &str, country: &str) -> rusqlite::Result<Vec<Count>> {
    connection
        .prepare_cached(sql)?
        .query_map([country], |row| Ok(Count { name: row.get(0)?, airports: row.get(1)? }))?
        .collect()
}

/// Runs a query without parameters that answers with one text a row.
fn strings(connection: &Connection, sql: &str) -> rusqlite::Result<Vec<String>> {
    connection.prepare_cached(sql)?.query_map([], |row| row.get(0))?.collect()
}

/// The distance along the surface of the earth between two points in degrees, in kilometres: the
/// haversine formula on a sphere, within 0.6 % of the ellipsoid.
fn great_circle_km(lat1: f64, lon1: f64, lat2: f64, lon2: f64) -> f64 {
    let half = |from: f64, to: f64| ((to - from).to_radians() / 2.0).sin().powi(2);
    let across = lat1.to_radians().cos() * lat2.to_radians().cos();
    let haversine = half(lat1, lat2) + across * half(lon1, lon2);
    // Rounding may push the haversine of two antipodes above one.
    2.0 * EARTH_RADIUS_KM * haversine.min(1.0).sqrt().asin()
}

#[cfg(test)]
mod tests {
    use std::thread;

    use tempfile::TempDir;

    use super::*;

    /// A new source in a directory that goes away with the first half.
    fn source() -> (TempDir, Source) {
        let dir = tempfile::tempdir().unwrap();
        let source = Source::create(&dir.path().join("airports.db"), &mut |_, _| {}).unwrap();
        (dir, source)
    }

    #[test]
    fn all_rows_are_loaded_and_told_as_progress() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("airports.db");
        let mut told = Vec::new();
        let source = Source::create(&path, &mut |done, total| told.push((done, total))).unwrap();
        assert_eq!(told.first(), Some(&(0, ROWS)));
        assert_eq!(told.last(), Some(&(ROWS, ROWS)));
        assert!(told.is_sorted());

        let codes = source.codes().unwrap();
        assert_eq!(codes.len() as u64, ROWS);
        assert!(codes.is_sorted());
        assert_eq!(source.countries().unwrap().len(), 234);
        assert_eq!(source.queries(), 0);

        let names: Vec<_> =
            fs::read_dir(dir.path()).unwrap().map(|f| f.unwrap().file_name()).collect();
        assert_eq!(names, ["airports.db"]);
        assert_eq!(Source::open(&path).unwrap().codes().unwrap(), codes);
    }

    #[test]
    fn an_airport_by_its_code() {
        let (_dir, source) = source();
        let zurich = Airport {
            icao: "LSZH".into(),
            iata: Some("ZRH".into()),
            name: "Zurich Airport".into(),
            city: Some("Zurich".into()),
            region: Some("Zurich".into()),
            country: "CH".into(),
            elevation_ft: 1416.0,
            latitude: 47.4647,
            longitude: 8.54917,
            time_zone: "Europe/Zurich".into(),
            lid: None,
        };
        assert_eq!(source.airport("LSZH").unwrap(), Some(zurich));
        assert_eq!(source.queries(), 1);
    }

    #[test]
    fn what_does_not_exist_is_none_or_empty() {
        let (_dir, source) = source();
        for code in ["", "lszh", "LSZ%", "nowhere", "' OR 1=1", "' OR 1=1 --", "LSZH\0"] {
            assert_eq!(source.airport(code).unwrap(), None, "{code:?}");
            assert!(source.nearest(code, 5).unwrap().neighbours.is_empty(), "{code:?}");
            let report = source.report(code).unwrap();
            assert_eq!(report.total, 0, "{code:?}");
            assert!(report.regions.is_empty() && report.time_zones.is_empty(), "{code:?}");
            assert_eq!((report.highest, report.northernmost), (None, None), "{code:?}");
        }
    }

    #[test]
    fn the_nearest_are_sorted_near_and_without_itself() {
        let (_dir, source) = source();
        let nearest = source.nearest("LSZH", 10).unwrap();
        assert_eq!(nearest.icao, "LSZH");
        assert_eq!(nearest.neighbours.len(), 10);
        assert!(nearest.neighbours.is_sorted_by(|a, b| a.km <= b.km));
        for neighbour in &nearest.neighbours {
            assert_ne!(neighbour.icao, "LSZH");
            assert!(neighbour.km > 0.0 && neighbour.km < 60.0, "{neighbour:?}");
            assert!(["CH", "DE", "AT", "FR", "LI"].contains(&&*neighbour.country), "{neighbour:?}");
        }
        assert!(nearest.neighbours.iter().any(|n| n.icao == "LSMD"), "Dübendorf is next door");
    }

    #[test]
    fn nearest_reaches_the_whole_table() {
        let (_dir, source) = source();
        let all = source.nearest("LSZH", u32::MAX).unwrap().neighbours;
        assert_eq!(all.len() as u64, ROWS - 1);
        let geneva = all.iter().find(|n| n.icao == "LSGG").unwrap();
        assert!((geneva.km - 230.0).abs() < 3.0, "{geneva:?}");
        assert!(all.last().unwrap().km < 20_016.0, "half way round is the farthest");
        assert!(source.nearest("LSZH", 0).unwrap().neighbours.is_empty());
    }

    #[test]
    fn nearest_scans_the_table_itself() {
        let (_dir, source) = source();
        let plan: Vec<String> = source
            .with(|connection| {
                let mut explain = connection.prepare(&format!("EXPLAIN QUERY PLAN {NEAREST}"))?;
                explain.query_map(params!["LSZH", 5], |row| row.get("detail"))?.collect()
            })
            .unwrap();
        assert!(plan.iter().any(|step| step.starts_with("SEARCH here")), "{plan:?}");
        assert!(plan.iter().any(|step| step == "SCAN there"), "{plan:?}");
    }

    #[test]
    fn distances_on_known_arcs() {
        let quarter = EARTH_RADIUS_KM * std::f64::consts::FRAC_PI_2;
        for (km, arc) in [
            (0.0, great_circle_km(47.0, 8.0, 47.0, 8.0)),
            (quarter, great_circle_km(0.0, 0.0, 90.0, 77.0)),
            (quarter, great_circle_km(0.0, 135.0, 0.0, -135.0)),
            (2.0 * quarter / 180.0, great_circle_km(0.0, 179.5, 0.0, -179.5)),
        ] {
            assert!((km - arc).abs() < 1e-6, "{km} {arc}");
        }
        // Near the antipodes the formula is good to a metre, and never not a number.
        let antipodes = great_circle_km(47.0, 8.0, -47.0, -172.0);
        assert!((2.0 * quarter - antipodes).abs() < 1e-3, "{antipodes}");
    }

    #[test]
    fn the_sums_of_a_report_match() {
        let (_dir, source) = source();
        let sum = |counts: &[Count]| counts.iter().map(|count| count.airports).sum::<u32>();
        for country in ["CH", "US", "AQ", "GL"] {
            let report = source.report(country).unwrap();
            assert!(report.total > 0);
            assert_eq!(sum(&report.regions), report.total, "{country}");
            assert_eq!(sum(&report.time_zones), report.total, "{country}");
            for counts in [&report.regions, &report.time_zones] {
                assert!(counts.is_sorted_by(|a, b| a.airports >= b.airports), "{country}");
            }
        }
        let report = source.report("CH").unwrap();
        let zurich = Count { name: Some("Europe/Zurich".into()), airports: report.total };
        assert_eq!(report.time_zones, [zurich]);
        assert_eq!(report.highest.unwrap().icao, "LSZS");
        assert!(report.northernmost.unwrap().latitude > 47.4);

        let countries = source.countries().unwrap();
        let total: u32 = countries.iter().map(|c| source.report(c).unwrap().total).sum();
        assert_eq!(u64::from(total), ROWS);
    }

    #[test]
    fn threads_share_it() {
        fn shareable<T: Clone + Send + Sync + 'static>(_: &T) {}
        let (_dir, source) = source();
        shareable(&source);
        let alone = source.nearest("KJFK", 3).unwrap();
        thread::scope(|scope| {
            for _ in 0..2 * MAX_IDLE {
                let (source, alone) = (source.clone(), &alone);
                scope.spawn(move || assert_eq!(&source.nearest("KJFK", 3).unwrap(), alone));
            }
        });
        assert_eq!(source.queries(), 1 + 2 * MAX_IDLE as u64);
        assert!(source.idle().len() <= MAX_IDLE);
    }

    #[test]
    fn other_files_are_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notes.txt");
        assert!(Source::open(&path).is_err());
        assert!(!path.exists());

        fs::write(&path, "not a database, but long enough to be taken for one ".repeat(100))
            .unwrap();
        let before = fs::read(&path).unwrap();
        assert!(Source::open(&path).is_err());
        let error = Source::create(&path, &mut |_, _| {}).unwrap_err();
        assert!(error.to_string().ends_with("notes.txt already exists"), "{error}");
        assert_eq!(fs::read(&path).unwrap(), before);

        let other = dir.path().join("other.db");
        Connection::open(&other).unwrap().execute_batch("CREATE TABLE airport (x)").unwrap();
        let error = format!("{:#}", Source::open(&other).unwrap_err());
        assert!(error.ends_with("not a database made by `terrace demo`"), "{error}");
    }

    #[test]
    fn what_a_killed_run_left_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("airports.db.part"), "half").unwrap();
        let path = dir.path().join("airports.db");
        let source = Source::create(&path, &mut |_, _| {}).unwrap();
        assert!(source.airport("LSZH").unwrap().is_some());
        assert!(!dir.path().join("airports.db.part").exists());
    }

    #[test]
    fn a_failure_leaves_nothing_and_says_where() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("missing").join("airports.db");
        let error = format!("{:#}", Source::create(&path, &mut |_, _| {}).unwrap_err());
        assert!(error.starts_with("cannot create the database"), "{error}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn results_survive_serialization() {
        let (_dir, source) = source();
        let airport = source.airport("LSZS").unwrap();
        let text = serde_json::to_string(&airport).unwrap();
        assert_eq!(serde_json::from_str::<Option<Airport>>(&text).unwrap(), airport);
        let report = source.report("CH").unwrap();
        let text = serde_json::to_string(&report).unwrap();
        assert_eq!(serde_json::from_str::<Report>(&text).unwrap(), report);
        let nearest = source.nearest("LSZS", 5).unwrap();
        let text = serde_json::to_string(&nearest).unwrap();
        assert_eq!(serde_json::from_str::<Nearest>(&text).unwrap().icao, nearest.icao);
    }
}
