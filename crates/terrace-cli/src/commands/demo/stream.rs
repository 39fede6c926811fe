//! The stream of queries of the demonstration: skewed, as real traffic is. A few airports and
//! countries are asked for all the time, most of them hardly ever.

use fastrand::Rng;

/// How skewed the stream is: the exponent of Zipf's law. The k-th most popular is asked for
/// 1/k^0.99 times as often as the most popular, as in the YCSB workloads.
const EXPONENT: f64 = 0.99;

/// A query of the [`Stream`].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Query {
    /// The airport with this ICAO code.
    Airport(String),
    /// The airports nearest to the one with this ICAO code.
    Nearest(String),
    /// The airports of this country in numbers.
    Report(String),
}

/// An endless stream of queries, the same for the same seed: 40 % [`Query::Airport`], 40 %
/// [`Query::Nearest`], 20 % [`Query::Report`].
#[derive(Clone, Debug)]
pub(crate) struct Stream {
    rng: Rng,
    codes: Popularity,
    countries: Popularity,
}

impl Stream {
    /// A stream over these ICAO codes and countries. The seed says which of them are popular and
    /// in which order they are asked for. Without codes or countries the stream ends where it
    /// would have asked for one.
    pub(crate) fn new(codes: Vec<String>, countries: Vec<String>, seed: u64) -> Self {
        let mut rng = Rng::with_seed(seed);
        let codes = Popularity::new(codes, &mut rng);
        let countries = Popularity::new(countries, &mut rng);
        Self { rng, codes, countries }
    }
}

impl Iterator for Stream {
    type Item = Query;

    fn next(&mut self) -> Option<Query> {
        Some(match self.rng.u8(0..10) {
            0..4 => Query::Airport(self.codes.pick(&mut self.rng)?),
            4..8 => Query::Nearest(self.codes.pick(&mut self.rng)?),
            _ => Query::Report(self.countries.pick(&mut self.rng)?),
        })
    }
}

/// Names, the most popular first.
#[derive(Clone, Debug)]
struct Popularity {
    names: Vec<String>,
    /// For each name the sum of the weights up to and including its own.
    sums: Vec<f64>,
}

impl Popularity {
    fn new(mut names: Vec<String>, rng: &mut Rng) -> Self {
        rng.shuffle(&mut names);
        let sums = (1..=names.len())
            .scan(0.0, |sum, rank| {
                *sum += (rank as f64).powf(-EXPONENT);
                Some(*sum)
            })
            .collect();
        Self { names, sums }
    }

    /// A name, each with the probability of its rank; `None` if there are none.
    fn pick(&self, rng: &mut Rng) -> Option<String> {
        let point = rng.f64() * self.sums.last()?;
        let index = self.sums.partition_point(|&sum| sum <= point);
        // Rounding may put the point on the last sum.
        self.names.get(index).or(self.names.last()).cloned()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    fn names(prefix: &str, count: usize) -> Vec<String> {
        (0..count).map(|n| format!("{prefix}{n:05}")).collect()
    }

    fn stream(seed: u64) -> Stream {
        Stream::new(names("A", 10_000), names("C", 234), seed)
    }

    #[test]
    fn the_same_seed_gives_the_same_stream() {
        let take = |seed| stream(seed).take(1000).collect::<Vec<_>>();
        assert_eq!(take(7), take(7));
        assert_ne!(take(7), take(8));
    }

    #[test]
    fn the_mix_is_40_40_20() {
        let mut counts = [0_u32; 3];
        for query in stream(1).take(100_000) {
            counts[match query {
                Query::Airport(_) => 0,
                Query::Nearest(_) => 1,
                Query::Report(_) => 2,
            }] += 1;
        }
        for (count, share) in counts.into_iter().zip([0.4, 0.4, 0.2]) {
            assert!((f64::from(count) / 100_000.0 - share).abs() < 0.01, "{counts:?}");
        }
    }

    #[test]
    fn a_tenth_of_the_codes_gets_most_of_the_accesses() {
        let mut counts = HashMap::<String, u32>::new();
        for query in stream(3).take(200_000) {
            if let Query::Airport(code) | Query::Nearest(code) = query {
                assert!(code.starts_with('A'));
                *counts.entry(code).or_default() += 1;
            }
        }
        let mut counts: Vec<u32> = counts.into_values().collect();
        counts.sort_unstable_by(|a, b| b.cmp(a));
        let all: u32 = counts.iter().sum();
        let top: u32 = counts.iter().take(1000).sum();
        assert!(top * 10 > all * 7 && top < all, "{top} of {all}");
        // The most popular has the share that Zipf's law gives it, and a tail is there too.
        let expected = 1.0 / (1..=10_000).map(|k| f64::from(k).powf(-EXPONENT)).sum::<f64>();
        assert!((f64::from(counts[0]) / f64::from(all) / expected - 1.0).abs() < 0.1);
        assert!(counts.len() > 5000);
    }

    #[test]
    fn which_codes_are_popular_depends_on_the_seed() {
        let popular = |seed| stream(seed).codes.names[..10].to_vec();
        assert_ne!(popular(1), popular(2));
        assert_ne!(popular(1), names("A", 10));
    }

    #[test]
    fn nothing_to_ask_for_ends_the_stream() {
        assert_eq!(Stream::new(Vec::new(), Vec::new(), 1).next(), None);
        assert!(Stream::new(names("A", 1), names("C", 1), 1).take(1000).count() == 1000);
    }
}
