//! How results are shown and kept.

use std::{fs, path::Path};

use anyhow::{Context, Result};
use serde::Serialize;

/// A cell against one yardstick: the ratios of the rounds. The form of `target/bench.json`.
#[derive(Debug, Serialize)]
#[expect(clippy::struct_field_names, reason = "the form of the file is fixed")]
pub(crate) struct Cell {
    /// What was measured.
    pub(crate) cell: String,
    /// The yardstick.
    pub(crate) against: String,
    /// The median of the rounds' ratios.
    pub(crate) ratio: f64,
    /// The least ratio.
    pub(crate) min: f64,
    /// The greatest ratio.
    pub(crate) max: f64,
    /// How many rounds counted.
    pub(crate) rounds: usize,
    /// What the ratio should reach.
    pub(crate) goal: f64,
}

impl Cell {
    /// A cell from the ratio of each round; at least one.
    pub(crate) fn new(cell: &str, against: &str, goal: f64, ratios: &[f64]) -> Self {
        let mut sorted = ratios.to_vec();
        sorted.sort_by(f64::total_cmp);
        let round = |value: f64| (value * 1000.0).round() / 1000.0;
        let at = |index: usize| sorted.get(index).copied().map_or(f64::NAN, round);
        Self {
            cell: cell.to_owned(),
            against: against.to_owned(),
            ratio: at(sorted.len() / 2),
            min: at(0),
            max: at(sorted.len().saturating_sub(1)),
            rounds: sorted.len(),
            goal,
        }
    }
}

/// Shows the cells as a table.
pub(crate) fn print(cells: &[Cell]) {
    println!(
        "\n{:<36} {:<28} {:>7} {:>15} {:>7} {:>6}",
        "cell", "against", "ratio", "range", "rounds", "goal"
    );
    for cell in cells {
        let verdict = if cell.ratio >= cell.goal {
            "reached"
        } else {
            "not reached"
        };
        let range = format!("{:.2}-{:.2}", cell.min, cell.max);
        println!(
            "{:<36} {:<28} {:>7.2} {range:>15} {:>7} {:>6.2}  {verdict}",
            cell.cell, cell.against, cell.ratio, cell.rounds, cell.goal
        );
    }
}

/// Writes the cells as a JSON array.
pub(crate) fn write(cells: &[Cell], path: &Path) -> Result<()> {
    let json = serde_json::to_string_pretty(cells).context("failed to write the results as JSON")?;
    fs::write(path, json + "\n").with_context(|| format!("failed to write {}", path.display()))?;
    println!("\nwritten to {}", path.display());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cell_tells_median_and_range() {
        let cell = Cell::new("a", "b", 0.5, &[0.6, 0.2, 0.4, 0.5, 0.3]);
        assert_eq!(
            (cell.ratio.to_bits(), cell.min.to_bits(), cell.max.to_bits()),
            (0.4_f64.to_bits(), 0.2_f64.to_bits(), 0.6_f64.to_bits())
        );
    }
}
