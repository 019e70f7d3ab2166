//! Charts as SVG, drawn by `plotters`.

use kvwise_core::{Error, Result};
use plotters::coord::ranged1d::{AsRangedCoord, ValueFormatter};
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;

use super::{LineChart, short};

/// Colours that people with colour blindness tell apart (Okabe and Ito, 2008).
const COLOURS: [RGBColor; 6] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
];

pub(super) fn line_chart(chart: &LineChart, width: u32, height: u32) -> Result<String> {
    let (low, high) = chart
        .x_range()
        .ok_or_else(|| Error::input(format!("{}: there is no point to draw", chart.title)))?;
    let mut out = String::new();
    let drawn = {
        let area = SVGBackend::with_string(&mut out, (width, height)).into_drawing_area();
        if chart.x_log {
            draw(chart, &area, (low..high).log_scale())
        } else {
            draw(chart, &area, low..high)
        }
        .and_then(|()| area.present().map_err(|e| e.to_string()))
    };
    drawn.map_err(|e| Error::input(format!("{}: cannot draw the chart: {e}", chart.title)))?;
    Ok(out)
}

type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;

fn draw<X>(chart: &LineChart, area: &Area<'_>, x: X) -> std::result::Result<(), String>
where
    X: AsRangedCoord<Value = f64>,
    X::CoordDescType: ValueFormatter<f64>,
{
    let fail = |e: &dyn std::fmt::Display| e.to_string();
    area.fill(&WHITE).map_err(|e| fail(&e))?;
    let mut context = ChartBuilder::on(area)
        .caption(&chart.title, ("sans-serif", 18))
        .margin(12)
        .x_label_area_size(44)
        .y_label_area_size(60)
        .build_cartesian_2d::<X, std::ops::Range<f64>>(x, 0.0..chart.y_max)
        .map_err(|e| fail(&e))?;
    let percent = chart.y_max <= 1.0;
    mesh(&mut context, chart, percent).map_err(|e| fail(&e))?;
    for (series, colour) in chart.series.iter().zip(COLOURS.iter().cycle()) {
        context
            .draw_series(LineSeries::new(
                series.points.iter().copied(),
                colour.stroke_width(2),
            ))
            .map_err(|e| fail(&e))?
            .label(&series.name)
            .legend(|(x, y)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(2)));
    }
    if chart.series.len() > 1 {
        context
            .configure_series_labels()
            .position(emptiest_corner(chart))
            .background_style(WHITE.mix(0.8))
            .label_font(("sans-serif", 13))
            .draw()
            .map_err(|e| fail(&e))?;
    }
    Ok(())
}

/// The corner whose third of the picture the lines cross least; the upper left one where they are alike.
fn emptiest_corner(chart: &LineChart) -> SeriesLabelPosition {
    let Some((low, high)) = chart.x_range() else {
        return SeriesLabelPosition::UpperLeft;
    };
    let along = |x: f64| {
        if chart.x_log {
            (x / low).ln() / (high / low).ln()
        } else {
            (x - low) / (high - low)
        }
    };
    let crossed = |right: bool, upper: bool| {
        let inside = |(x, y): (f64, f64)| {
            let (x, y) = (along(x), y / chart.y_max);
            (if right { x > 0.65 } else { x < 0.35 }) && (if upper { y > 0.6 } else { y < 0.4 })
        };
        // Twenty places on the way from each point to the next.
        let steps = |pair: &[(f64, f64)]| {
            let ((x0, y0), (x1, y1)) = (pair[0], pair[1]);
            (0..=20)
                .map(|i| f64::from(i) / 20.0)
                .filter(|t| inside((x0 + (x1 - x0) * t, y0 + (y1 - y0) * t)))
                .count()
        };
        chart
            .series
            .iter()
            .flat_map(|s| s.points.windows(2))
            .map(steps)
            .sum::<usize>()
    };
    [
        (crossed(false, true), SeriesLabelPosition::UpperLeft),
        (crossed(true, true), SeriesLabelPosition::UpperRight),
        (crossed(true, false), SeriesLabelPosition::LowerRight),
        (crossed(false, false), SeriesLabelPosition::LowerLeft),
    ]
    .into_iter()
    .min_by_key(|(crossed, _)| *crossed)
    .map_or(SeriesLabelPosition::UpperLeft, |(_, corner)| corner)
}

type Drawn = std::result::Result<(), DrawingAreaErrorKind<std::io::Error>>;

fn mesh<X>(
    context: &mut ChartContext<'_, SVGBackend<'_>, Cartesian2d<X, RangedCoordf64>>,
    chart: &LineChart,
    percent: bool,
) -> Drawn
where
    X: Ranged<ValueType = f64> + ValueFormatter<f64>,
{
    context
        .configure_mesh()
        .x_desc(&chart.x_label)
        .y_desc(&chart.y_label)
        .x_labels(10)
        .light_line_style(TRANSPARENT)
        .label_style(("sans-serif", 13))
        .x_label_formatter(&|x| short(*x))
        .y_label_formatter(&|y| {
            if percent {
                format!("{:.0} %", 100.0 * y)
            } else {
                short(*y)
            }
        })
        .draw()
}
