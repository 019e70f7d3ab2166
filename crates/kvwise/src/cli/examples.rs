//! The examples of help texts, folded so that they can be copied from a terminal of eighty columns.

/// Columns of a line of an example.
const WIDTH: usize = 78;

/// Folds every example in the help of `command` and of those below it.
pub fn fold(mut command: clap::Command) -> clap::Command {
    if let Some(help) = command.get_after_help().map(ToString::to_string) {
        command = command.after_help(folded(&help));
    }
    if let Some(help) = command.get_after_long_help().map(ToString::to_string) {
        command = command.after_long_help(folded(&help));
    }
    command.mut_subcommands(fold)
}

/// `help` with each line that begins with the program's name and is too long continued with a backslash, as a shell
/// reads it, and what it says of the example below it.
fn folded(help: &str) -> String {
    let lines: Vec<String> = help
        .lines()
        .map(|line| {
            if line.starts_with("  kvwise ") && line.chars().count() > WIDTH {
                fold_line(line)
            } else {
                line.to_owned()
            }
        })
        .collect();
    lines.join("\n")
}

fn fold_line(line: &str) -> String {
    let (command, remark) = split_remark(line);
    let (command, open_end) = match command.strip_suffix('\\') {
        Some(rest) => (rest.trim_end(), " \\"),
        None => (command, ""),
    };
    let mut out = String::from("  ");
    let mut columns = 2;
    for (k, word) in phrases(command).into_iter().enumerate() {
        let length = word.chars().count();
        if k > 0 && columns + 1 + length + 2 > WIDTH {
            out.push_str(" \\\n      ");
            columns = 6;
        } else if k > 0 {
            out.push(' ');
            columns += 1;
        }
        out.push_str(word);
        columns += length;
    }
    out.push_str(open_end);
    if let Some(remark) = remark {
        if columns + 5 + remark.chars().count() > WIDTH {
            out.push_str("\n     ");
        } else {
            out.push_str("  ");
        }
        out.push_str(" # ");
        out.push_str(remark);
    }
    out
}

/// An example and what is said of it, after two blanks or a sharp.
fn split_remark(line: &str) -> (&str, Option<&str>) {
    let line = line.trim();
    let end = ["  ", " #"].iter().filter_map(|mark| line.find(mark)).min();
    match end {
        Some(end) => (&line[..end], Some(line[end..].trim_start_matches([' ', '#']))),
        None => (line, None),
    }
}

/// Words of a command, a flag and its value as one; what stands in single quotes stays together.
fn phrases(command: &str) -> Vec<&str> {
    let (mut quoted, mut flag) = (false, false);
    let mut starts = vec![0];
    for (at, c) in command.char_indices() {
        quoted ^= c == '\'';
        if c == ' ' && !quoted {
            let next = &command[at + 1..];
            if !flag || next.starts_with('-') {
                starts.push(at + 1);
                flag = next.starts_with('-');
            } else {
                flag = false;
            }
        }
    }
    let ends = starts
        .iter()
        .skip(1)
        .map(|start| start - 1)
        .chain([command.len()]);
    starts
        .iter()
        .zip(ends)
        .map(|(&start, end)| &command[start..end])
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_example_is_continued_as_a_shell_reads_it() {
        let line = "  kvwise simulate --model llama-3.1-8b --gpu h100 --input-len 1000 --output-len 200 --find-rate --slo-ttft-ms 500";
        assert_eq!(
            folded(line),
            "  kvwise simulate --model llama-3.1-8b --gpu h100 --input-len 1000 \\\n      --output-len 200 --find-rate --slo-ttft-ms 500"
        );
        let joined: Vec<&str> = line.split_whitespace().collect();
        let shell = folded(line).replace("\\\n", " ");
        assert_eq!(shell.split_whitespace().collect::<Vec<_>>(), joined);
    }

    #[test]
    fn quoted_words_stay_together_and_remarks_become_comments() {
        let line = "  kvwise replay trace.jsonl --speculative-config '{\"method\": \"eagle3\", \"num_speculative_tokens\": 3}'   drafts of an EAGLE head";
        let text = folded(line);
        assert!(
            text.contains("'{\"method\": \"eagle3\", \"num_speculative_tokens\": 3}'"),
            "{text}"
        );
        assert!(text.ends_with("\n      # drafts of an EAGLE head"), "{text}");
        assert_eq!(folded("  kvwise gpus   every GPU"), "  kvwise gpus   every GPU");
    }

    #[test]
    fn a_flag_stays_with_its_value() {
        assert_eq!(
            phrases("kvwise plan m --gpu h100 -q --tp 2 'a b' c"),
            ["kvwise", "plan", "m", "--gpu h100", "-q", "--tp 2", "'a b'", "c"]
        );
    }

    #[test]
    fn what_goes_on_below_goes_on_below() {
        let line = "  kvwise simulate --model llama-3.1-70b --gpu h100 --input-len 8000 --output-len 500 --rate 4 \\\n      --tp 4";
        let text = folded(line);
        assert!(text.ends_with("--rate 4 \\\n      --tp 4"), "{text}");
        assert!(text.lines().all(|line| line.chars().count() <= WIDTH), "{text}");
    }
}
