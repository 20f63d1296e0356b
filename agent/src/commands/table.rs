//! Columns that line up.

/// Renders rows below a heading; all columns but the first are to the right if `numbers` says so.
pub(super) fn render(heading: &[&str], rows: &[Vec<String>], numbers: &[bool]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.chain(heading.get(column).map(|cell| cell.len())).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..heading.len()).map(width).collect();
    let heading: Vec<String> = heading.iter().map(|&cell| cell.to_owned()).collect();
    std::iter::once(&heading).chain(rows).map(|row| line(row, &widths, numbers)).collect()
}

fn line(row: &[String], widths: &[usize], numbers: &[bool]) -> String {
    let cells: Vec<String> = row
        .iter()
        .zip(widths)
        .zip(numbers)
        .map(
            |((cell, width), number)| {
                if *number { format!("{cell:>width$}") } else { format!("{cell:<width$}") }
            },
        )
        .collect();
    format!("{}\n", cells.join("  ").trim_end())
}

#[cfg(test)]
mod tests {
    use super::render;

    #[test]
    fn columns_line_up_and_lines_do_not_trail() {
        let rows = vec![
            vec!["shop/cart".to_owned(), "7".to_owned(), "x".to_owned()],
            vec!["a/b".to_owned(), "1234".to_owned(), String::new()],
        ];
        assert_eq!(
            render(&["POD", "N", "NOTE"], &rows, &[false, true, false]),
            "POD           N  NOTE\nshop/cart     7  x\na/b        1234\n"
        );
    }
}
