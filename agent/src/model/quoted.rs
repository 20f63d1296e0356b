//! Text of unknown length and content inside of a message: one short line, whatever it holds.
//!
//! Owns: how a value is quoted ([`Quoted`]) and how somebody else's message is repeated ([`Brief`]). Called by:
//! every error that repeats what it was given.

use std::fmt::{self, Write as _};

/// Shows a value: in quotes, escaped, cut after 80 columns.
pub struct Quoted<'a>(pub &'a str);

/// Shows a message of a library, which may repeat all of its input: escaped, cut after 240 columns.
pub struct Brief<T>(pub T);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const MOST: usize = 80;
        f.write_char('"')?;
        let whole = escape(f, self.0, MOST)?;
        f.write_str(if whole { "\"" } else { "\"…" })
    }
}

impl<T: fmt::Display> fmt::Display for Brief<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const MOST: usize = 240;
        let mut left = MOST;
        for character in self.0.to_string().chars() {
            let printed = if character.is_control() { character.escape_debug().len() } else { 1 };
            let Some(rest) = left.checked_sub(printed) else { return f.write_char('…') };
            left = rest;
            if character.is_control() {
                write!(f, "{}", character.escape_debug())?;
            } else {
                f.write_char(character)?;
            }
        }
        Ok(())
    }
}

/// Writes as much of a text, escaped, as there are columns; says whether that was all.
fn escape(f: &mut fmt::Formatter<'_>, text: &str, mut columns: usize) -> Result<bool, fmt::Error> {
    for character in text.chars() {
        // A single quote needs no escape between double ones.
        let escaped = character.escape_debug();
        let printed = if character == '\'' { 1 } else { escaped.len() };
        let Some(rest) = columns.checked_sub(printed) else { return Ok(false) };
        columns = rest;
        if character == '\'' { f.write_char(character)? } else { write!(f, "{escaped}")? }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quoted_text_is_one_short_line() {
        assert_eq!(Quoted("a\n\"b'c").to_string(), r#""a\n\"b'c""#);
        assert_eq!(Quoted(&"ä".repeat(80)).to_string(), format!("\"{}\"", "ä".repeat(80)));
        assert_eq!(Quoted(&"ä".repeat(81)).to_string(), format!("\"{}\"…", "ä".repeat(80)));
        assert_eq!(Quoted(&"\x1b".repeat(500)).to_string(), format!("\"{}\"…", "\\u{1b}".repeat(13)));
    }

    #[test]
    fn a_repeated_message_is_one_line_and_short() {
        assert_eq!(Brief("say \"no\"\n").to_string(), "say \"no\"\\n");
        assert_eq!(Brief("x".repeat(1000)).to_string(), format!("{}…", "x".repeat(240)));
    }
}
