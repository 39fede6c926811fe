//! From rounds to a median and an interval.

/// With fewer rounds than these, no two of them bound the median with 95 % certainty.
pub const FEWEST_ROUNDS: usize = 6;

/// A median, and what bounds it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Estimate {
    pub median: f64,
    pub low: f64,
    pub high: f64,
}

/// The median of `rounds`, with its 95 % interval; `None` without rounds.
///
/// The interval is the narrowest pair of order statistics, equally far from both ends, that
/// encloses the true median with a probability of at least 95 %. It supposes nothing about how
/// rounds are distributed. Below [`FEWEST_ROUNDS`] it is the whole range, and encloses less.
#[must_use]
pub fn estimate(mut rounds: Vec<f64>) -> Option<Estimate> {
    rounds.sort_by(f64::total_cmp);
    let last = rounds.len().checked_sub(1)?;
    let median = f64::midpoint(rounds[last / 2], rounds[last.div_ceil(2)]);
    let outside = outside(rounds.len());
    Some(Estimate { median, low: rounds[outside], high: rounds[last - outside] })
}

/// How many of `count` sorted values may be left out at either end.
fn outside(count: usize) -> usize {
    // The chance that exactly `left` of the values are below the median, summed up.
    let mut exactly = 0.5_f64.powi(i32::try_from(count).unwrap_or(i32::MAX));
    let mut at_most = exactly;
    let mut left = 0;
    while 2.0 * at_most <= 0.05 {
        left += 1;
        exactly *= (count - left + 1) as f64 / left as f64;
        at_most += exactly;
    }
    left.saturating_sub(1)
}

/// `value` to four significant digits: no measurement here knows more.
#[must_use]
pub fn rounded(value: f64) -> f64 {
    format!("{value:.3e}").parse().unwrap_or(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle() {
        let middle = |rounds: &[f64]| estimate(rounds.to_vec()).map(|found| found.median);
        assert_eq!(middle(&[]), None);
        assert_eq!(middle(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(middle(&[4.0, 1.0, 2.0, 3.0]), Some(2.5));
    }

    #[test]
    fn the_interval_leaves_out_what_the_table_of_the_sign_test_says() {
        let table = [(1, 0), (6, 0), (8, 0), (9, 1), (12, 2), (20, 5), (50, 17), (100, 39)];
        for (count, left) in table {
            assert_eq!(outside(count), left, "of {count}");
        }
    }

    #[test]
    fn numbers_keep_four_digits() {
        assert_eq!(rounded(12_345.678), 12_350.0);
        assert_eq!(rounded(0.001_234_56), 0.001_235);
        assert_eq!(rounded(0.0), 0.0);
    }
}
