//! Charts: for the terminal (Unicode braille and blocks) and as SVG.
//!
//! A chart is data ([`LineChart`], [`Series`]) that both renderers take. SVG is drawn with `plotters` without its
//! default features (no fonts, bitmaps or image codecs: six small crates); terminals get 2 x 4 dots a character.

mod svg;
mod terminal;

pub use terminal::histogram;

/// A line of a chart.
#[derive(Debug, Clone, PartialEq)]
pub struct Series {
    /// Name in the legend.
    pub name: String,
    /// Points by x; on a logarithmic axis x is above 0.
    pub points: Vec<(f64, f64)>,
}

/// Lines over one x axis.
#[derive(Debug, Clone, PartialEq)]
pub struct LineChart {
    /// Title.
    pub title: String,
    /// Name and unit of the x axis.
    pub x_label: String,
    /// Name and unit of the y axis.
    pub y_label: String,
    /// Whether the x axis is logarithmic.
    pub x_log: bool,
    /// Largest y; the smallest is 0.
    pub y_max: f64,
    /// The lines.
    pub series: Vec<Series>,
}

impl LineChart {
    /// For a terminal, `width` characters wide and `height` high, without colour.
    pub fn text(&self, width: usize, height: usize) -> String {
        terminal::line_chart(self, width, height)
    }

    /// As a self-contained SVG picture.
    ///
    /// # Errors
    /// If the picture cannot be drawn (no point, a range that is not finite).
    pub fn svg(&self, width: u32, height: u32) -> kvwise_core::Result<String> {
        svg::line_chart(self, width, height)
    }

    /// The range of x over all lines; `None` without points.
    fn x_range(&self) -> Option<(f64, f64)> {
        let xs = || {
            self.series
                .iter()
                .flat_map(|s| s.points.iter().map(|p| p.0))
                .filter(|x| x.is_finite())
        };
        let low = xs().min_by(f64::total_cmp)?;
        let high = xs().max_by(f64::total_cmp)?;
        let high = if high > low { high } else { low * 2.0 + 1.0 };
        (!self.x_log || low > 0.0).then_some((low, high))
    }
}

/// A count with a short unit: 1200 is `1.2k`.
pub fn short(value: f64) -> String {
    let (scaled, unit) = match value.abs() {
        v if v >= 1e9 => (value / 1e9, "G"),
        v if v >= 1e6 => (value / 1e6, "M"),
        v if v >= 1e3 => (value / 1e3, "k"),
        _ => (value, ""),
    };
    let digits = usize::from(!(scaled.abs() >= 100.0 || (scaled - scaled.round()).abs() < 0.05));
    format!("{scaled:.digits$}{unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(x_log: bool) -> LineChart {
        LineChart {
            title: "t <&>".to_owned(),
            x_label: "blocks".to_owned(),
            y_label: "hit rate".to_owned(),
            x_log,
            y_max: 1.0,
            series: vec![Series {
                name: "lru".to_owned(),
                points: vec![(1.0, 0.0), (10.0, 0.5), (100.0, 1.0)],
            }],
        }
    }

    #[test]
    fn a_terminal_chart_has_the_size_asked_for_and_rises_to_the_right() {
        let text = chart(true).text(40, 8);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 11, "title, 8 rows, axis, labels:\n{text}");
        assert!(lines.iter().all(|l| l.chars().count() <= 40), "{text}");
        let filled = |line: &str| line.chars().position(|c| ('\u{2801}'..='\u{28ff}').contains(&c));
        assert!(filled(lines[1]) > filled(lines[8]), "{text}");
    }

    #[test]
    fn a_picture_is_self_contained_svg() {
        for x_log in [true, false] {
            let svg = chart(x_log).svg(640, 360).unwrap();
            assert!(
                svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"),
                "{svg}"
            );
            assert!(
                svg.contains("t &lt;&amp;&gt;") && svg.contains("polyline"),
                "{svg}"
            );
        }
    }

    #[test]
    fn a_chart_without_points_is_an_error_as_picture_and_empty_as_text() {
        let empty = LineChart {
            series: Vec::new(),
            ..chart(true)
        };
        assert!(empty.svg(640, 360).is_err());
        assert!(empty.text(40, 8).contains("no points"));
    }

    #[test]
    fn histogram_bars_are_as_long_as_their_counts() {
        let text = histogram(
            &[("a".to_owned(), 4), ("bb".to_owned(), 2), ("c".to_owned(), 0)],
            20,
        );
        let bars: Vec<usize> = text
            .lines()
            .map(|l| l.chars().filter(|&c| c == '█').count())
            .collect();
        assert_eq!((bars[0], bars[1], bars[2]), (bars[0], bars[0] / 2, 0));
        assert!(bars[0] >= 8, "{text}");
    }

    #[test]
    fn counts_are_shortened_with_units() {
        assert_eq!(
            ["0", "7", "1.2k", "182k", "2.2M", "10G"],
            [
                short(0.0).as_str(),
                short(7.0).as_str(),
                short(1234.0).as_str(),
                short(182_432.0).as_str(),
                short(2.2e6).as_str(),
                short(1e10).as_str()
            ]
        );
    }
}
