//! Splits shell text into commands and words: quotes, escapes, continued lines, comments, `${NAME:-default}`.
//!
//! Nothing is run. What only a shell can know (`$NAME`, `$(command)`) stays in the word as it is written.

/// One simple command.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Command {
    /// `NAME=value` in front of it, and exports before it.
    pub environment: Vec<(String, String)>,
    /// Program and arguments.
    pub words: Vec<String>,
    /// Line on which it begins, from 1.
    pub line: usize,
}

/// Splits text into commands.
///
/// # Errors
/// If a quote is not closed; the text says on which line it was opened.
pub fn split(text: &str) -> Result<Vec<Command>, String> {
    let mut reader = Reader {
        chars: text.chars().collect(),
        at: 0,
        line: 1,
    };
    let mut commands = Vec::new();
    let mut command = Command::default();
    let mut exported: Vec<(String, String)> = Vec::new();
    loop {
        match reader.next()? {
            Token::Word(word) => {
                if command.words.is_empty() && command.environment.is_empty() {
                    command.line = reader.line;
                }
                match assignment(&word) {
                    Some(pair) if command.words.is_empty() => command.environment.push(pair),
                    _ => command.words.push(word),
                }
            }
            token @ (Token::End | Token::Break) => {
                let done = std::mem::take(&mut command);
                if done.words.first().is_some_and(|w| w == "export") {
                    exported.extend(done.words[1..].iter().filter_map(|w| assignment(w)));
                } else if done.words.is_empty() {
                    // An assignment alone lasts for the rest of the script, but is no variable of the engine's.
                    exported.extend(done.environment);
                } else {
                    let mut environment = exported.clone();
                    environment.extend(done.environment.clone());
                    commands.push(Command { environment, ..done });
                }
                if token == Token::End {
                    return Ok(commands);
                }
            }
        }
    }
}

fn assignment(word: &str) -> Option<(String, String)> {
    let (name, value) = word.split_once('=')?;
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_';
    (!name.is_empty() && name.chars().all(plain) && !name.starts_with(|c: char| c.is_ascii_digit()))
        .then(|| (name.to_owned(), value.to_owned()))
}

#[derive(Debug, PartialEq, Eq)]
enum Token {
    Word(String),
    Break,
    End,
}

struct Reader {
    chars: Vec<char>,
    at: usize,
    line: usize,
}

impl Reader {
    fn peek(&self, ahead: usize) -> Option<char> {
        self.chars.get(self.at + ahead).copied()
    }

    fn take(&mut self) -> Option<char> {
        let c = self.peek(0)?;
        self.at += 1;
        if c == '\n' {
            self.line += 1;
        }
        Some(c)
    }

    fn next(&mut self) -> Result<Token, String> {
        loop {
            match self.peek(0) {
                None => return Ok(Token::End),
                Some('\n' | ';' | '|' | '(' | ')') => {
                    self.take();
                    return Ok(Token::Break);
                }
                Some('&') => {
                    // `2>&1` belongs to a redirection and is read with the word.
                    self.take();
                    return Ok(Token::Break);
                }
                Some('\\') if self.peek(1) == Some('\n') => {
                    self.take();
                    self.take();
                }
                Some('\\') if self.peek(1) == Some('\r') && self.peek(2) == Some('\n') => {
                    self.at += 2;
                    self.take();
                }
                Some('#') => {
                    while self.peek(0).is_some_and(|c| c != '\n') {
                        self.take();
                    }
                }
                Some(c) if c.is_whitespace() => {
                    self.take();
                }
                Some('<' | '>') => self.redirection()?,
                Some(c) if c.is_ascii_digit() && matches!(self.peek(1), Some('<' | '>')) => {
                    self.take();
                    self.redirection()?;
                }
                Some(_) => return Ok(Token::Word(self.word()?)),
            }
        }
    }

    /// `> file`, `2>&1`: no words of the command.
    fn redirection(&mut self) -> Result<(), String> {
        while matches!(self.peek(0), Some('<' | '>' | '&')) {
            self.take();
        }
        while matches!(self.peek(0), Some(' ' | '\t')) {
            self.take();
        }
        if self.peek(0).is_some_and(|c| !c.is_whitespace()) {
            self.word()?;
        }
        Ok(())
    }

    fn word(&mut self) -> Result<String, String> {
        let mut word = String::new();
        while let Some(c) = self.peek(0) {
            match c {
                '\'' | '"' => {
                    let opened = self.line;
                    self.take();
                    self.quoted(c, &mut word)
                        .ok_or_else(|| format!("the quote {c} opened on line {opened} is never closed"))?;
                }
                '\\' => {
                    self.take();
                    match self.take() {
                        None => word.push('\\'),
                        Some('\n') => {}
                        Some(c) => word.push(c),
                    }
                }
                '$' => self.variable(&mut word),
                c if c.is_whitespace() || ";|&()<>".contains(c) => break,
                c => {
                    self.take();
                    word.push(c);
                }
            }
        }
        Ok(word)
    }

    fn quoted(&mut self, quote: char, word: &mut String) -> Option<()> {
        loop {
            match self.peek(0)? {
                c if c == quote => {
                    self.take();
                    return Some(());
                }
                '\\' if quote == '"' => {
                    self.take();
                    match self.take()? {
                        c @ ('"' | '\\' | '$' | '`') => word.push(c),
                        '\n' => {}
                        c => word.extend(['\\', c]),
                    }
                }
                '$' if quote == '"' => self.variable(word),
                c => {
                    self.take();
                    word.push(c);
                }
            }
        }
    }

    /// `${NAME:-default}` becomes its default, everything else stays as it is written.
    fn variable(&mut self, word: &mut String) {
        let start = self.at;
        self.take();
        let (open, close) = match self.peek(0) {
            Some('{') => ('{', '}'),
            Some('(') => ('(', ')'),
            _ => {
                word.push('$');
                return;
            }
        };
        let mut depth = 0;
        while let Some(c) = self.take() {
            if c == open {
                depth += 1;
            } else if c == close {
                depth -= 1;
                if depth == 0 {
                    break;
                }
            }
        }
        let text: String = self.chars[start..self.at].iter().collect();
        let inner = text.strip_prefix("${").and_then(|t| t.strip_suffix('}'));
        match inner.and_then(|t| t.split_once(":-").or_else(|| t.split_once('-'))) {
            Some((_, default)) => word.push_str(default),
            None => word.push_str(&text),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::report::quote;

    fn words(text: &str) -> Vec<Vec<String>> {
        split(text).unwrap().into_iter().map(|c| c.words).collect()
    }

    #[test]
    fn quotes_escapes_and_continued_lines_are_read_as_a_shell_reads_them() {
        assert_eq!(
            words("vllm serve 'a b' \\\n  --x=\"c \\\"d\\\" $HOME\" e\\ f # not this\necho done"),
            [
                vec!["vllm", "serve", "a b", "--x=c \"d\" $HOME", "e f"],
                vec!["echo", "done"]
            ]
        );
        assert_eq!(
            words("a ${PORT:-8000} \"${X:-y z}\" $(id -u) 2>&1 | tee log && b"),
            [
                vec!["a", "8000", "y z", "$(id -u)"],
                vec!["tee", "log"],
                vec!["b"]
            ]
        );
    }

    #[test]
    fn environments_belong_to_their_command_and_exports_to_all_after_them() {
        let commands = split("export A=1\nB=2 C='3 4' vllm serve m\nother").unwrap();
        let names = |c: &Command| c.environment.iter().map(|(n, _)| n.clone()).collect::<Vec<_>>();
        assert_eq!(names(&commands[0]), ["A", "B", "C"]);
        assert_eq!(names(&commands[1]), ["A"]);
        assert_eq!(commands[0].line, 2);
    }

    #[test]
    fn an_open_quote_is_an_error_with_its_line() {
        assert_eq!(
            split("a\nb 'c").unwrap_err(),
            "the quote ' opened on line 2 is never closed"
        );
    }

    proptest! {
        #[test]
        fn what_is_quoted_for_a_shell_is_read_back(given in proptest::collection::vec(any::<String>(), 1..6)) {
            let line: Vec<String> = given.iter().map(|w| quote::shell(w)).collect();
            let read = split(&format!("program {}", line.join(" "))).unwrap();
            prop_assert_eq!(&read[0].words[1..], &given[..]);
        }

        #[test]
        fn no_text_makes_the_reader_panic(text in any::<String>()) {
            let _ = split(&text);
        }
    }
}
