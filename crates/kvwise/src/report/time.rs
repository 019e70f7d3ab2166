//! Times for people and for file names, in UTC.

/// Year, month, day, hour, minute, second of microseconds since 1970.
fn civil(t_us: i64) -> (i64, i64, i64, i64, i64, i64) {
    let seconds = t_us.div_euclid(1_000_000);
    let (days, rest) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    // days since 0000-03-01, so that leap days fall at the end of a year (Howard Hinnant's civil_from_days)
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let day_of_era = z.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    (year, month, day, rest / 3600, rest / 60 % 60, rest % 60)
}

/// `20261122_135304`, for file names.
pub fn compact(t_us: i64) -> String {
    let (y, mo, d, h, mi, s) = civil(t_us);
    format!("{y:04}{mo:02}{d:02}_{h:02}{mi:02}{s:02}")
}

/// `2026-11-22 13:53:04 UTC`.
pub fn readable(t_us: i64) -> String {
    let (y, mo, d, h, mi, s) = civil(t_us);
    format!("{y:04}-{mo:02}-{d:02} {h:02}:{mi:02}:{s:02} UTC")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_moments_are_named_right() {
        assert_eq!(readable(0), "1970-01-01 00:00:00 UTC");
        assert_eq!(readable(951_782_400_000_000), "2000-02-29 00:00:00 UTC");
        assert_eq!(compact(1_795_355_450_432_668), "20261122_135050");
        assert_eq!(readable(-1_000_000), "1969-12-31 23:59:59 UTC");
    }
}
