//! Texts for people, in the columns of a terminal that is not wide.
//!
//! Owns: the breaking of lines. Never does: know what the texts say. Called by: `explain` and `doctor`.

/// Columns of a terminal that is not wide.
pub const WIDTH: usize = 100;

/// Adds a text behind a label, its further lines below its first. A word that is longer than a line stays whole.
pub fn hang(lines: &mut Vec<String>, label: &str, text: &str) {
    let indent = label.chars().count();
    let mut line = label.to_owned();
    let mut empty = true;
    for word in text.split(' ') {
        if !empty && line.chars().count() + 1 + word.chars().count() > WIDTH {
            lines.push(std::mem::replace(&mut line, " ".repeat(indent)));
            empty = true;
        }
        if !empty {
            line.push(' ');
        }
        line.push_str(word);
        empty = false;
    }
    lines.push(line.trim_end().to_owned());
}
