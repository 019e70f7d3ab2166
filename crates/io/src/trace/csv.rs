//! Formats of lengths and times only: the Azure LLM inference traces and BurstGPT, both CSV with a header.

use kvwise_core::{Error, Result};
use kvwise_sim::trace::{NewRequest, TraceBuilder, TraceFormat};

use super::jsonl::not_before;

/// Where the columns are, found in the header line.
#[derive(Debug, Clone)]
pub(super) struct Columns {
    format: TraceFormat,
    time: usize,
    input: usize,
    output: usize,
    count: usize,
    /// Time of the first row, subtracted from all.
    first: Option<i128>,
}

/// The format of a header line, if it is one of these.
pub(super) fn detect(header: &str) -> Option<TraceFormat> {
    let has = |name: &str| {
        header
            .split(',')
            .any(|c| c.trim().trim_matches('"').eq_ignore_ascii_case(name))
    };
    if has("TIMESTAMP") && has("ContextTokens") && has("GeneratedTokens") {
        Some(TraceFormat::Azure)
    } else if has("Timestamp") && has("Request tokens") && has("Response tokens") {
        Some(TraceFormat::BurstGpt)
    } else {
        None
    }
}

impl Columns {
    /// Finds the columns of `format` in the header.
    pub(super) fn of_header(header: &[u8], format: TraceFormat) -> Result<Self> {
        let header =
            std::str::from_utf8(header).map_err(|_| Error::input("line 1: the header is not UTF-8"))?;
        let header = header.trim_start_matches('\u{feff}');
        let names: Vec<&str> = header.split(',').map(|c| c.trim().trim_matches('"')).collect();
        let find = |name: &str| {
            names
                .iter()
                .position(|c| c.eq_ignore_ascii_case(name))
                .ok_or_else(|| {
                    Error::input(format!(
                        "line 1: column \"{name}\" is missing from the header of a {format} trace"
                    ))
                })
        };
        let (input, output) = match format {
            TraceFormat::Azure => (find("ContextTokens")?, find("GeneratedTokens")?),
            _ => (find("Request tokens")?, find("Response tokens")?),
        };
        Ok(Self {
            format,
            time: find("Timestamp")?,
            input,
            output,
            count: names.len(),
            first: None,
        })
    }

    /// Adds one row.
    pub(super) fn row(&mut self, line: &[u8], builder: &mut TraceBuilder, sort: bool) -> Result<()> {
        let line = std::str::from_utf8(line).map_err(|_| Error::input("the row is not UTF-8"))?;
        let cells: Vec<&str> = line.split(',').map(|c| c.trim().trim_matches('"')).collect();
        if cells.len() != self.count {
            return Err(Error::input(format!(
                "{} columns, expected {}",
                cells.len(),
                self.count
            )));
        }
        let count = |at: usize, name: &str| -> Result<u64> {
            // tables written by pandas say 472.0 for 472
            let text = cells[at].strip_suffix(".0").unwrap_or(cells[at]);
            text.parse().map_err(|_| {
                Error::input(format!(
                    "column \"{name}\" is \"{}\", expected an integer of 0 or more",
                    cells[at]
                ))
            })
        };
        let (input, output, nanos) = if self.format == TraceFormat::Azure {
            let nanos = timestamp_nanos(cells[self.time]).ok_or_else(|| {
                Error::input(format!(
                    "column \"TIMESTAMP\" is \"{}\", expected a time as 2023-11-16 18:15:46.6805900",
                    cells[self.time]
                ))
            })?;
            let first = *self.first.get_or_insert(nanos);
            (
                count(self.input, "ContextTokens")?,
                count(self.output, "GeneratedTokens")?,
                nanos - first,
            )
        } else {
            let nanos = decimal_nanos(cells[self.time]).ok_or_else(|| {
                Error::input(format!(
                    "column \"Timestamp\" is \"{}\", expected seconds",
                    cells[self.time]
                ))
            })?;
            (
                count(self.input, "Request tokens")?,
                count(self.output, "Response tokens")?,
                nanos,
            )
        };
        let arrival = nanos as f64 / 1e9;
        not_before(arrival, builder, sort)?;
        builder.push(&NewRequest {
            arrival: Some(arrival),
            input_len: Some(input),
            output_len: Some(output),
            ..NewRequest::default()
        })
    }
}

/// Nanoseconds of a decimal number of seconds; digits after the ninth are dropped.
fn decimal_nanos(text: &str) -> Option<i128> {
    let (sign, text) = match text.strip_prefix('-') {
        Some(rest) => (-1, rest),
        None => (1, text),
    };
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    if whole.is_empty()
        || !(whole.bytes().chain(fraction.bytes())).all(|b| b.is_ascii_digit())
        || whole.len() > 18
    {
        return None;
    }
    let digits: String = fraction.chars().chain(std::iter::repeat('0')).take(9).collect();
    Some(sign * (whole.parse::<i128>().ok()? * 1_000_000_000 + digits.parse::<i128>().ok()?))
}

/// Nanoseconds since 1970 of `YYYY-MM-DD HH:MM:SS[.fraction][zone]`; all rows are taken to be in one zone.
fn timestamp_nanos(text: &str) -> Option<i128> {
    let (date, time) = text.split_once([' ', 'T'])?;
    let time = time.trim_end_matches('Z').trim_end_matches("+00:00");
    let mut date = date.split('-').map(|p| p.parse::<i64>().ok());
    let (year, month, day) = (date.next()??, date.next()??, date.next()??);
    let mut clock = time.splitn(3, ':');
    let (hour, minute) = (
        clock.next()?.parse::<i64>().ok()?,
        clock.next()?.parse::<i64>().ok()?,
    );
    let seconds = decimal_nanos(clock.next()?)?;
    let in_range = (1970..=9999).contains(&year)
        && (1..=12).contains(&month)
        && (1..=31).contains(&day)
        && (0..24).contains(&hour)
        && (0..60).contains(&minute)
        && (0..61_000_000_000).contains(&seconds);
    if !in_range || date.next().is_some() {
        return None;
    }
    // days of the civil calendar since 1970: years counted from March, so that the leap day comes last
    let (y, m) = if month > 2 {
        (year, month - 3)
    } else {
        (year - 1, month + 9)
    };
    let days = 365 * y + y / 4 - y / 100 + y / 400 + (153 * m + 2) / 5 + day - 1 - 719_468;
    Some(i128::from(days * 86_400 + hour * 3_600 + minute * 60) * 1_000_000_000 + seconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timestamps_are_nanoseconds_since_1970() {
        assert_eq!(timestamp_nanos("1970-01-01 00:00:00"), Some(0));
        assert_eq!(
            timestamp_nanos("2000-03-01T00:00:00.5Z"),
            Some(951_868_800_500_000_000)
        );
        assert_eq!(
            timestamp_nanos("2023-11-16 18:15:46.6805900"),
            Some(1_700_158_546_680_590_000)
        );
        for bad in [
            "",
            "2023-13-01 00:00:00",
            "2023-11-16",
            "2023-11-16 25:00:00",
            "x-y-z 0:0:0",
            "2023-11-16 1:2",
        ] {
            assert_eq!(timestamp_nanos(bad), None, "{bad}");
        }
    }

    #[test]
    fn decimals_keep_their_nanoseconds() {
        assert_eq!(decimal_nanos("12.5"), Some(12_500_000_000));
        assert_eq!(decimal_nanos("-0.000000001"), Some(-1));
        assert_eq!(decimal_nanos("5.0000000019"), Some(5_000_000_001));
        for bad in ["", ".", "1e3", "nan", "--1", "1.2.3"] {
            assert_eq!(decimal_nanos(bad), None, "{bad}");
        }
    }
}
