//! Labels: what people call a machine, such as `gpu=a100`, to find it by.

use crate::{LabelName, events::StringMap};

/// Of one node.
pub const LABELS_MAX: usize = 32;
/// Longest value, in bytes.
pub const VALUE_BYTES_MAX: usize = 128;
/// Of one node's names and values together, in bytes: hundreds of nodes are described in one record.
pub const BYTES_MAX: usize = 1_024;

const VALUE_RULE: &str = "use 1 to 128 printable ASCII characters without spaces and commas";

/// `NAME=VALUE`
pub fn parse(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or_else(|| format!("{text:?} is no label: write NAME=VALUE"))?;
    check_one(name, value)?;
    Ok((name.to_owned(), value.to_owned()))
}

/// Why these cannot be a node's labels, if they cannot.
pub fn check(labels: &StringMap) -> Result<(), String> {
    if labels.len() > LABELS_MAX {
        return Err(format!("{} labels are too many: a node has at most {LABELS_MAX}", labels.len()));
    }
    let bytes: usize = labels.iter().map(|(name, value)| name.len() + value.len()).sum();
    if bytes > BYTES_MAX {
        return Err(format!("the labels have {bytes} bytes together: a node's have at most {BYTES_MAX}"));
    }
    labels.iter().try_for_each(|(name, value)| check_one(name, value))
}

fn check_one(name: &str, value: &str) -> Result<(), String> {
    name.parse::<LabelName>().map_err(|error| error.to_string())?;
    // Conditions have commas between them.
    let is_value = (1..=VALUE_BYTES_MAX).contains(&value.len())
        && value.bytes().all(|byte| byte.is_ascii_graphic() && byte != b',');
    if is_value { Ok(()) } else { Err(format!("label {name}: its value {value:?} is not valid: {VALUE_RULE}")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_names_with_values() {
        assert_eq!(parse("gpu=a100"), Ok(("gpu".to_owned(), "a100".to_owned())));
        assert_eq!(parse("os.image=debian-13=b").expect("valid").1, "debian-13=b");
        for bad in ["gpu", "=x", "GPU=x", "gpu=", "gpu=a b", "gpu=a,b", "gpu=ä", &format!("gpu={}", "x".repeat(129))] {
            let error = parse(bad).expect_err(bad);
            assert!(error.contains("label"), "{error}");
        }
        let many = |count: usize| (0..count).map(|n| (format!("l{n}"), "v".to_owned())).collect();
        assert_eq!(check(&many(LABELS_MAX)), Ok(()));
        check(&many(LABELS_MAX + 1)).expect_err("too many");
        let long = (0..9).map(|n| (format!("l{n}"), "v".repeat(VALUE_BYTES_MAX))).collect();
        assert!(check(&long).expect_err("too long").contains("1024"));
    }
}
