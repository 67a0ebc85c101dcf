//! What a backend has done so far, for people: `info jit` and QMP's `x-query-jit` print it as it is.

use std::fmt;
use std::time::Duration;

/// A heading with figures under it.
#[derive(Debug, Clone, PartialEq)]
pub struct Section {
    /// The heading.
    pub title: String,
    /// Names and figures, in the order in which they are printed.
    pub rows: Vec<(String, Figure)>,
}

impl Section {
    /// A heading without figures yet.
    pub fn new(title: impl Into<String>) -> Self {
        Self { title: title.into(), rows: Vec::new() }
    }

    /// The same with one figure more.
    #[must_use]
    pub fn with(mut self, name: impl Into<String>, figure: Figure) -> Self {
        self.rows.push((name.into(), figure));
        self
    }
}

/// An amount with its unit.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Figure {
    /// So many.
    Count(u64),
    /// So many, and how many that is of each thousand of something named beside it.
    Of(u64, u64),
    /// Bytes.
    Bytes(u64),
    /// Bytes, of so many at most.
    BytesOf(u64, u64),
    /// A time.
    Time(Duration),
    /// A ratio without unit.
    Ratio(f64),
}

impl fmt::Display for Figure {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Figure::Count(count) => write!(out, "{count}"),
            Figure::Of(part, whole) => {
                let share = if whole == 0 { 0.0 } else { part as f64 * 100.0 / whole as f64 };
                write!(out, "{part} ({share:.1} %)")
            }
            Figure::Bytes(bytes) => write!(out, "{bytes} ({:.1} MiB)", mib(bytes)),
            Figure::BytesOf(bytes, most) => write!(out, "{bytes} ({:.1} of {:.1} MiB)", mib(bytes), mib(most)),
            Figure::Time(time) => write!(out, "{:.3} s", time.as_secs_f64()),
            Figure::Ratio(ratio) => write!(out, "{ratio:.2}"),
        }
    }
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// The sections as lines of text, figures in one column.
pub fn print(sections: &[Section]) -> String {
    let names = sections.iter().flat_map(|section| &section.rows).map(|(name, _)| name.chars().count());
    let width = names.max().unwrap_or(0);
    let mut text = String::new();
    for section in sections {
        text += &format!("{}:\n", section.title);
        for (name, figure) in &section.rows {
            text += &format!("  {name:width$}  {figure}\n");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_stand_in_one_column() {
        let sections = [
            Section::new("Tier 1").with("blocks", Figure::Count(3)).with("host code", Figure::BytesOf(1 << 20, 2 << 20)),
            Section::new("Time").with("translating", Figure::Of(1, 8)),
        ];
        let text = print(&sections);
        assert_eq!(
            text,
            "Tier 1:\n  blocks       3\n  host code    1048576 (1.0 of 2.0 MiB)\nTime:\n  translating  1 (12.5 %)\n"
        );
    }
}
