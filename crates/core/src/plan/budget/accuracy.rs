//! How good the budget is on logs that its fit has not seen; writes that section of the accuracy page.
//!
//! With `KVWISE_WRITE_ACCURACY=1` the section of `docs/src/reference/accuracy.md` is written anew; otherwise the test
//! compares.

mod boots;
mod explained;
mod fit;
mod page;

use super::Footing;
use boots::{Boot, boots};
use fit::{Fit, Judged, judged};
use page::{BEGIN, END, covered, quantile, section, sorted};

const PAGE: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../../docs/src/reference/accuracy.md"
);

/// The first collection of logs has smaller ids; the second was collected when constants and forms were fitted to the first.
const SECOND_COLLECTION: u64 = 301;
/// The third was collected when they were fitted to both.
const THIRD_COLLECTION: u64 = 401;
/// And the fourth when they were fitted to three.
const FOURTH_COLLECTION: u64 = 501;
/// And the fifth when they were fitted to four.
const FIFTH_COLLECTION: u64 = 601;

#[test]
fn unseen_logs_are_within_the_target_and_the_page_says_how_far() {
    let boots = boots();
    let rows = judged(&boots);
    let later = [
        (SECOND_COLLECTION, THIRD_COLLECTION),
        (THIRD_COLLECTION, FOURTH_COLLECTION),
        (FOURTH_COLLECTION, FIFTH_COLLECTION),
        (FIFTH_COLLECTION, u64::MAX),
    ]
    .map(|(from, to)| {
        let before: Vec<&Boot> = boots.iter().filter(|b| b.id < from).collect();
        let fit = Fit::of(&before);
        boots
            .iter()
            .filter(|b| (from..to).contains(&b.id))
            .map(|boot| Judged {
                boot,
                unseen: fit.predicted(boot),
                shipped: Fit::shipped().predicted(boot),
            })
            .collect::<Vec<_>>()
    });
    let errors = sorted(rows.iter().map(|j| j.boot.error_percent(j.unseen).abs()));
    let (median, ninety) = (quantile(&errors, 0.5), quantile(&errors, 0.9));
    assert!(
        median <= 1.0 && ninety <= 4.0,
        "median {median:.2} %, 90th percentile {ninety:.2} %"
    );
    let inside = rows.iter().filter(|j| covered(j.boot, j.unseen)).count();
    assert!(
        inside * 100 >= rows.len() * 80,
        "the interval holds {inside} of {} unseen logs",
        rows.len()
    );
    let written = section(&rows, [&later[0], &later[1], &later[2], &later[3]]);
    let page = std::fs::read_to_string(PAGE).unwrap();
    let (Some(start), Some(end)) = (page.find(BEGIN), page.find(END)) else {
        panic!("{PAGE} has no section for the budget");
    };
    let fresh = format!("{}{written}{}", &page[..start], &page[end + END.len()..]);
    if std::env::var_os("KVWISE_WRITE_ACCURACY").is_some() {
        std::fs::write(PAGE, fresh).unwrap();
    } else {
        assert!(
            page == fresh,
            "the accuracy page is stale: KVWISE_WRITE_ACCURACY=1 cargo test -p kvwise-core accuracy"
        );
    }
}

#[test]
fn the_shipped_constants_are_no_worse_than_a_fresh_fit() {
    let boots = boots();
    let all: Vec<&Boot> = boots.iter().collect();
    let (shipped, fresh) = (Fit::shipped().loss(&all), Fit::of(&all).loss(&all));
    assert!(
        shipped <= fresh * 1.1 + 0.01,
        "shipped {shipped:.3}, fresh fit {fresh:.3}"
    );
}

#[test]
fn the_tables_of_quantiles_are_no_narrower_than_the_errors_and_not_much_wider() {
    let boots = boots();
    let rows = judged(&boots);
    for footing in [
        Footing::Sorting,
        Footing::OtherMakers,
        Footing::Other,
        Footing::Unified,
    ] {
        let of: Vec<&Judged> = rows
            .iter()
            .filter(|j| j.boot.inputs.footing() == footing)
            .collect();
        let inside = of.iter().filter(|j| covered(j.boot, j.unseen)).count();
        let share = inside as f64 / of.len() as f64;
        assert!(
            (0.8..0.95).contains(&share),
            "{footing:?}: {inside} of {} unseen logs inside the interval that should hold 80 to 90 %",
            of.len()
        );
    }
}
