//! Environment files: lines of `KEY=VALUE`, as systemd and shells have them, without expansion of anything.

use longshore_schemas::events::StringMap;

/// Of all files of a release together.
pub const VARIABLES_MAX: usize = 500;

/// The variables of a file; an error names the line. Never shows a value, which may be a secret.
pub fn parse(text: &str) -> Result<StringMap, String> {
    let mut variables = StringMap::new();
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.trim();
        if line.is_empty() || line.starts_with(['#', ';']) {
            continue;
        }
        let line = line.strip_prefix("export ").unwrap_or(line);
        let (name, value) = line.split_once('=').ok_or_else(|| format!("line {number} is not KEY=VALUE"))?;
        let name = name.trim_end();
        let is_name = |name: &str| name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
        if name.is_empty() || name.starts_with(|c: char| c.is_ascii_digit()) || !is_name(name) {
            return Err(format!("line {number} has no name of letters, digits and '_' before its '='"));
        }
        if value.contains('\0') {
            return Err(format!("line {number} holds a zero byte"));
        }
        variables.insert(name.to_owned(), unquoted(value.trim_start()).to_owned());
        if variables.len() > VARIABLES_MAX {
            return Err(format!("there are more than {VARIABLES_MAX} variables"));
        }
    }
    Ok(variables)
}

fn unquoted(value: &str) -> &str {
    let within = |quote: char| value.strip_prefix(quote)?.strip_suffix(quote);
    within('"').or_else(|| within('\'')).unwrap_or(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_variables() {
        let table = [
            ("", vec![]),
            ("# a comment\n; another\n\nA=1\n", vec![("A", "1")]),
            ("A=1\nB=two words \nA=3", vec![("A", "3"), ("B", "two words")]),
            ("export KEY='a b'\nOTHER=\"c=d\"\nHALF=\"x", vec![("HALF", "\"x"), ("KEY", "a b"), ("OTHER", "c=d")]),
            ("EMPTY=\nURL=https://x/?a=b#c\r\n", vec![("EMPTY", ""), ("URL", "https://x/?a=b#c")]),
            ("LITERAL=$HOME\\n", vec![("LITERAL", "$HOME\\n")]),
        ];
        for (text, expected) in table {
            let expected = expected.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
            assert_eq!(parse(text), Ok(expected), "{text:?}");
        }
    }

    #[test]
    fn what_is_wrong_is_told_by_its_line_and_without_values() {
        let table = [
            ("A=1\nsecret", "line 2 is not"),
            ("=secret", "line 1 has no name"),
            ("1A=secret", "line 1 has no name"),
            ("A B=secret", "line 1 has no name"),
            ("A=secret\0", "line 1 holds a zero byte"),
        ];
        for (text, expected) in table {
            let error = parse(text).expect_err(text);
            assert!(error.starts_with(expected) && !error.contains("secret"), "{text:?}: {error}");
        }
        let many: String = (0..=VARIABLES_MAX).map(|n| format!("V{n}=\n")).collect();
        assert!(parse(&many).expect_err("too many").contains("more than 500"));
    }
}
