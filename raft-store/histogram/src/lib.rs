//! Counts of numbers by powers of two: what openraft counts its batches with.
//!
//! Stands in for the published crate of this name, by `[patch.crates-io]` in the root manifest. That one
//! fills tables of all its 16 resolutions when the first number is recorded, 26 MiB that openraft keeps for
//! good, more than the rest of a node together. Openraft records on every run of its core and shows the
//! counts only with a feature that this project leaves off, so a coarse count is enough. When upstream
//! makes its tables when they are asked for, this crate goes.
//!
//! Has exactly what openraft calls.

use std::fmt;
use std::marker::PhantomData;

/// Zero, and one bucket for each length in bits.
const BUCKETS: usize = 65;

/// How many numbers of each magnitude were recorded. 520 bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Histogram<T = ()> {
    counts: Vec<u64>,
    of: PhantomData<T>,
}

impl<T> Default for Histogram<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> Histogram<T> {
    /// An empty one.
    pub fn new() -> Self {
        Histogram { counts: vec![0; BUCKETS], of: PhantomData }
    }

    /// Counts `value` once.
    pub fn record(&mut self, value: u64) {
        self.record_n(value, 1);
    }

    /// Counts `value` `times` times.
    pub fn record_n(&mut self, value: u64, times: u64) {
        self.counts[(u64::BITS - value.leading_zeros()) as usize] += times;
    }

    /// How many numbers were counted.
    pub fn total(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// The distribution; each figure is the largest number of its bucket, so less than twice too high.
    pub fn percentile_stats(&self) -> PercentileStats {
        let at = |permille| self.percentile(permille);
        PercentileStats {
            samples: self.total(),
            p0_1: at(1),
            p1: at(10),
            p5: at(50),
            p10: at(100),
            p50: at(500),
            p90: at(900),
            p99: at(990),
            p99_9: at(999),
        }
    }

    fn percentile(&self, permille: u128) -> u64 {
        let wanted = (u128::from(self.total()) * permille).div_ceil(1000);
        let mut seen = 0;
        for (bits, count) in self.counts.iter().enumerate() {
            seen += u128::from(*count);
            if *count > 0 && seen >= wanted {
                return u64::MAX.checked_shr(u64::BITS - bits as u32).unwrap_or(0);
            }
        }
        0
    }
}

/// What a histogram says in figures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PercentileStats {
    /// Numbers counted.
    pub samples: u64,
    /// One in a thousand is no larger.
    pub p0_1: u64,
    /// One in a hundred is no larger.
    pub p1: u64,
    /// One in twenty is no larger.
    pub p5: u64,
    /// One in ten is no larger.
    pub p10: u64,
    /// The median.
    pub p50: u64,
    /// One in ten is larger.
    pub p90: u64,
    /// One in a hundred is larger.
    pub p99: u64,
    /// One in a thousand is larger.
    pub p99_9: u64,
}

impl fmt::Display for PercentileStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let PercentileStats { samples, p50, p90, p99, p99_9, .. } = self;
        write!(f, "{samples} samples, p50 {p50}, p90 {p90}, p99 {p99}, p99.9 {p99_9}")
    }
}

/// Histograms with names, to be printed together.
#[derive(Debug, Clone, Default)]
pub struct AsciiChart<T = ()> {
    series: Vec<(String, Histogram<T>)>,
}

impl<T> AsciiChart<T> {
    /// An empty one.
    pub fn new() -> Self {
        AsciiChart { series: Vec::new() }
    }

    /// The same with one more histogram.
    #[must_use]
    pub fn add(mut self, name: &str, histogram: Histogram<T>) -> Self {
        self.series.push((name.to_owned(), histogram));
        self
    }

    /// To be printed.
    pub fn detailed(&self) -> &Self {
        self
    }
}

impl<T> fmt::Display for AsciiChart<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.series
            .iter()
            .try_for_each(|(name, histogram)| writeln!(f, "{name}: {}", histogram.percentile_stats()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_the_ends_of_their_buckets() {
        let mut histogram: Histogram = Histogram::new();
        assert_eq!(histogram.percentile_stats().p99, 0);
        histogram.record_n(5, 98);
        histogram.record(0);
        histogram.record(u64::MAX);
        let stats = histogram.percentile_stats();
        assert_eq!((stats.samples, stats.p0_1, stats.p1), (100, 0, 0));
        assert_eq!((stats.p5, stats.p50, stats.p99, stats.p99_9), (7, 7, 7, u64::MAX));
    }
}
