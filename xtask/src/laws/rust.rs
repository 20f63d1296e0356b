//! Rust source as the paths it names and the strings it holds, each with its line.
//!
//! Works on tokens, not on lines: comments are not code, and `use a::{b, c::d}` names `a::c::d`. Names
//! are not resolved: an alias hides what it names, and the laws watch the `use` that makes it.

use proc_macro2::{Delimiter, Group, Literal, TokenStream, TokenTree};

/// What a source file names.
#[derive(Default)]
pub(super) struct Names {
    pub(super) paths: Vec<Named>,
    pub(super) strings: Vec<Named>,
}

/// A path, its segments joined by `::`, or the text of a string literal.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Named {
    pub(super) text: String,
    pub(super) line: usize,
    /// Within an item under `#[cfg(test)]` or `#[test]`.
    pub(super) in_test: bool,
}

/// Reads a source file. Fails where it is no Rust, with the reason.
pub(super) fn names(source: &str) -> Result<Names, String> {
    let stream: TokenStream = source.parse().map_err(|error: proc_macro2::LexError| error.to_string())?;
    let mut reader = Reader::default();
    reader.read(stream, "", false);
    Ok(reader.names)
}

#[derive(Default)]
struct Reader {
    names: Names,
}

/// A path while it is being read.
#[derive(Default)]
struct Path {
    text: String,
    line: usize,
    /// The last thing read was `::`.
    open: bool,
}

impl Reader {
    /// Reads the tokens of a file or a group. `prefix` is the path before the braces of a `use` group.
    fn read(&mut self, stream: TokenStream, prefix: &str, in_test: bool) {
        let mut tokens = stream.into_iter().peekable();
        let mut path = Path::default();
        let mut item_is_test = false;
        while let Some(token) = tokens.next() {
            let in_test = in_test || item_is_test;
            match token {
                TokenTree::Ident(ident) => {
                    if !path.open {
                        self.close(&mut path, prefix, in_test);
                    }
                    path.line = ident.span().start().line;
                    path.text += &ident.to_string();
                    path.open = false;
                }
                TokenTree::Punct(punct) if punct.as_char() == ':' && is_colon(tokens.peek()) => {
                    tokens.next();
                    if !path.text.is_empty() {
                        path.text += "::";
                    }
                    path.open = true;
                }
                TokenTree::Punct(punct) => {
                    self.close(&mut path, prefix, in_test);
                    if punct.as_char() == '#' {
                        // `#![..]` speaks of the module it stands in.
                        tokens.next_if(is_bang);
                        item_is_test |= self.read_attribute(tokens.peek(), in_test);
                        if is_attribute(tokens.peek()) {
                            tokens.next();
                        }
                    }
                    if matches!(punct.as_char(), ';' | ',') {
                        item_is_test = false;
                    }
                }
                TokenTree::Group(group) => {
                    let inner = if path.open { joined(prefix, &path.text) } else { String::new() };
                    if path.open {
                        path = Path::default();
                    }
                    self.close(&mut path, prefix, in_test);
                    self.read(group.stream(), &inner, in_test);
                    if group.delimiter() == Delimiter::Brace {
                        item_is_test = false;
                    }
                }
                TokenTree::Literal(literal) => {
                    self.close(&mut path, prefix, in_test);
                    self.add_string(&literal, in_test);
                }
            }
        }
        self.close(&mut path, prefix, in_test || item_is_test);
    }

    /// Ends the path that was being read and keeps it.
    fn close(&mut self, path: &mut Path, prefix: &str, in_test: bool) {
        let Path { text, line, .. } = std::mem::take(path);
        if !text.is_empty() {
            let text = joined(prefix, text.trim_end_matches(':'));
            self.names.paths.push(Named { text, line, in_test });
        }
    }

    /// Documentation is an attribute to the compiler and prose to us. Returns whether the attribute
    /// makes its item one for tests.
    fn read_attribute(&mut self, token: Option<&TokenTree>, in_test: bool) -> bool {
        let Some(TokenTree::Group(group)) = token else { return false };
        let text = group.stream().to_string();
        if text.starts_with("doc") {
            return false;
        }
        self.read(group.stream(), "", in_test);
        text == "test" || text.replace(' ', "").starts_with("cfg(test")
    }

    fn add_string(&mut self, literal: &Literal, in_test: bool) {
        let text = literal.to_string();
        if text.contains('"') {
            self.names.strings.push(Named { text, line: literal.span().start().line, in_test });
        }
    }
}

fn is_colon(token: Option<&TokenTree>) -> bool {
    matches!(token, Some(TokenTree::Punct(punct)) if punct.as_char() == ':')
}

fn is_bang(token: &TokenTree) -> bool {
    matches!(token, TokenTree::Punct(punct) if punct.as_char() == '!')
}

fn is_attribute(token: Option<&TokenTree>) -> bool {
    matches!(token, Some(TokenTree::Group(group)) if is_bracket(group))
}

fn is_bracket(group: &Group) -> bool {
    group.delimiter() == Delimiter::Bracket
}

fn joined(prefix: &str, path: &str) -> String {
    let path = path.trim_end_matches(':');
    if prefix.is_empty() { path.to_owned() } else { format!("{prefix}::{path}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(source: &str) -> Vec<(String, usize, bool)> {
        let names = names(source).unwrap();
        names.paths.into_iter().map(|named| (named.text, named.line, named.in_test)).collect()
    }

    fn has(source: &str, path: &str) -> bool {
        paths(source).iter().any(|(text, _, _)| text == path)
    }

    #[test]
    fn groups_of_a_use_are_spelled_out() {
        let source = "use std::{fs, io::{self, Read}, process::Command as C};";
        for path in ["std::fs", "std::io::self", "std::io::Read", "std::process::Command"] {
            assert!(has(source, path), "{path}: {:?}", paths(source));
        }
        assert!(!has(source, "std::Command") && !has(source, "fs"));
    }

    #[test]
    fn paths_in_code_are_found_with_their_lines() {
        let source =
            "fn f() -> ::core::net::IpAddr {\n    nix::sched::setns(fd, x)?;\n    Vec::<u8>::new()\n}";
        assert!(has(source, "core::net::IpAddr"));
        assert!(paths(source).contains(&("nix::sched::setns".to_owned(), 2, false)));
    }

    #[test]
    fn a_type_annotation_is_no_path() {
        assert!(has("let a: std::fs::File = b;", "std::fs::File"));
        assert!(!has("let a: std::fs::File = b;", "a::std::fs::File"));
    }

    #[test]
    fn comments_and_documentation_name_nothing() {
        let source = "//! std::fs\n// std::fs\n/// std::fs \"text\"\nfn f() {} /* std::fs */";
        assert!(paths(source).iter().all(|(text, _, _)| !text.contains("std")));
        assert!(names(source).unwrap().strings.is_empty());
    }

    #[test]
    fn code_under_cfg_test_is_marked_and_what_follows_is_not() {
        let source =
            "#[cfg(test)]\nmod tests { use std::fs; }\nuse std::process;\n#[cfg(test)]\nuse a::b;\nuse c::d;";
        let of = |path: &str| paths(source).into_iter().find(|(text, _, _)| text == path).unwrap().2;
        assert!(of("std::fs") && of("a::b"));
        assert!(!of("std::process") && !of("c::d"));
    }

    #[test]
    fn strings_of_every_kind_are_found() {
        let source = "const A: &str = \"one\"; const B: &[u8] = b\"two\"; const C: &str = r#\"three\"#; #[arg(env = \"four\")] struct S;";
        let strings: Vec<_> = names(source).unwrap().strings.into_iter().map(|named| named.text).collect();
        assert_eq!(strings, ["\"one\"", "b\"two\"", "r#\"three\"#", "\"four\""]);
    }

    #[test]
    fn what_is_no_rust_is_refused() {
        assert!(names("fn f( {").is_err());
    }
}
