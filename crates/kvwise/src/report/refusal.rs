//! Deployments whose engine would not start, in words below a table of those that would.

use super::text::wrap;

/// A deployment whose engine would not start.
#[derive(Debug, Clone, Copy)]
pub struct Refusal<'a> {
    /// The deployment's name in the table above.
    pub name: &'a str,
    /// Why, in the engine's terms.
    pub reason: &'a str,
    /// What would let it start.
    pub fix: Option<&'a str>,
}

/// Writes a paragraph for each reason, those whom it concerns first.
pub fn paragraphs(out: &mut String, refusals: &[Refusal<'_>]) {
    let mut said: Vec<(&str, Option<&str>)> = Vec::new();
    for one in refusals {
        if said.contains(&(one.reason, one.fix)) {
            continue;
        }
        said.push((one.reason, one.fix));
        let names: Vec<&str> = refusals
            .iter()
            .filter(|other| (other.reason, other.fix) == (one.reason, one.fix))
            .map(|other| other.name)
            .collect();
        let verb = if names.len() == 1 { "does" } else { "do" };
        wrap(
            out,
            &format!("{} {verb} not start: {}", names.join(", "), one.reason),
            "  ",
        );
        if let Some(fix) = one.fix {
            wrap(out, &format!("fix: {fix}"), "  ");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_said_once_for_all_whom_it_concerns() {
        let refusal = |name, reason, fix| Refusal { name, reason, fix };
        let mut out = String::new();
        paragraphs(
            &mut out,
            &[
                refusal("tp=2", "too small", Some("tp=4 would")),
                refusal("tp=3", "heads do not divide", None),
                refusal("tp=2, fp8", "too small", Some("tp=4 would")),
            ],
        );
        assert_eq!(
            out,
            "tp=2, tp=2, fp8 do not start: too small\nfix: tp=4 would\ntp=3 does not start: heads do not divide\n"
        );
    }
}
