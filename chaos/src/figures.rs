//! Distributions of what was measured.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

/// Named rows of measurements, each in one unit.
#[derive(Debug, Default)]
pub(crate) struct Figures {
    rows: BTreeMap<String, (String, Vec<f64>)>,
}

impl Figures {
    /// Adds one measurement.
    pub(crate) fn add(&mut self, name: &str, unit: &str, value: f64) {
        self.rows.entry(name.to_owned()).or_insert_with(|| (unit.to_owned(), Vec::new())).1.push(value);
    }

    /// Adds a time in milliseconds.
    pub(crate) fn add_time(&mut self, name: &str, time: Duration) {
        self.add(name, "ms", time.as_secs_f64() * 1000.0);
    }

    /// One line a row: count, minimum, median, 90th and 99th percentile, maximum.
    pub(crate) fn text(&self) -> String {
        let mut text = format!(
            "{:<34} {:>5} {:>10} {:>10} {:>10} {:>10} {:>10}\n",
            "", "n", "min", "p50", "p90", "p99", "max"
        );
        for (name, (unit, values)) in &self.rows {
            let at = |share| percentile(values, share);
            text += &format!(
                "{:<34} {:>5} {:>10.1} {:>10.1} {:>10.1} {:>10.1} {:>10.1}\n",
                format!("{name} [{unit}]"),
                values.len(),
                at(0.0),
                at(0.5),
                at(0.9),
                at(0.99),
                at(1.0)
            );
        }
        text
    }

    /// The same for machines, with every single measurement.
    pub(crate) fn json(&self) -> Value {
        let rows = self.rows.iter().map(|(name, (unit, values))| {
            let at = |share| percentile(values, share);
            let row = json!({
                "unit": unit, "runs": values.len(), "min": at(0.0), "p50": at(0.5), "p90": at(0.9),
                "p99": at(0.99), "max": at(1.0), "values": values,
            });
            (name.clone(), row)
        });
        Value::Object(rows.collect())
    }
}

/// The nearest-rank percentile; 0 for no values.
fn percentile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_that_occurred() {
        let values: Vec<f64> = (1..=20).map(f64::from).collect();
        assert_eq!(percentile(&values, 0.0), 1.0);
        assert_eq!(percentile(&values, 0.5), 10.0);
        assert_eq!(percentile(&values, 0.99), 20.0);
        assert_eq!(percentile(&[7.0], 0.5), 7.0);
        assert_eq!(percentile(&[], 0.5), 0.0);
    }
}
