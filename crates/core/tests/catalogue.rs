//! The catalogue's configurations against the parameter totals that the hub shows for their checkpoints.
//!
//! A transcribed configuration with one wrong size has another total: the agreement to the last parameter is what
//! speaks for the rows whose source is not a mirror of the file itself.

use kvwise_core::arch::family::{self, Reading};
use kvwise_core::catalogue;

const PUBLISHED: &str = include_str!("data/published_params.tsv");

#[test]
fn models_of_the_catalogue_have_as_many_parameters_as_their_published_checkpoints() {
    let mut wrong = Vec::new();
    let mut compared = 0;
    for line in PUBLISHED.lines().filter(|line| !line.starts_with('#')) {
        let [name, published, difference, reason] = line.split('\t').collect::<Vec<_>>()[..] else {
            panic!("four columns: {line}");
        };
        let (published, difference): (i64, i64) = (published.parse().unwrap(), difference.parse().unwrap());
        assert_eq!(
            difference == 0,
            reason.is_empty(),
            "{name}: a difference has a reason"
        );
        let config = catalogue::find(name).unwrap().config().unwrap();
        let Reading::Model(model) = family::read(name, &config).unwrap() else {
            panic!("{name} is refused");
        };
        let (params, _) = model.params().unwrap();
        if i64::try_from(params).unwrap() != published + difference {
            wrong.push(format!(
                "{name}: {params}, published {published}, expected {difference} more"
            ));
        }
        compared += 1;
    }
    assert!(compared > 100, "{compared}");
    assert_eq!(wrong, [""; 0]);
}
