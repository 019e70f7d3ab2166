//! Durations on the command line: `60s`, `200ms`, `5m`, `1h`, `0.2s`; a bare number means seconds.

use std::time::Duration;

/// Parses a duration, for clap.
///
/// # Errors
/// If the text is no positive number with a known unit, or longer than 10 years.
pub fn parse(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text}: not a duration; write for example 60s, 200ms, 5m or 1h");
    let digits = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: f64 = number.parse().map_err(|_| wrong())?;
    let seconds = number
        * match unit {
            "" | "s" => 1.0,
            "ms" => 0.001,
            "m" | "min" => 60.0,
            "h" => 3600.0,
            "d" => 86400.0,
            _ => return Err(wrong()),
        };
    if !(seconds > 0.0 && seconds < 3.2e8) {
        return Err(format!(
            "{text}: a duration must be above zero and below 10 years"
        ));
    }
    Ok(Duration::from_secs_f64(seconds))
}

#[cfg(test)]
mod tests {
    use super::parse;
    use std::time::Duration;

    #[test]
    fn units_are_understood_and_nonsense_is_refused() {
        assert_eq!(parse("0.2s"), Ok(Duration::from_millis(200)));
        assert_eq!(parse("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(parse("60"), Ok(Duration::from_secs(60)));
        assert_eq!(parse("2h"), Ok(Duration::from_secs(7200)));
        for bad in ["", "s", "-1s", "0", "1y", "1e999", "nan", "5 s"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
