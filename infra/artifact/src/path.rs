//! Which paths and links a tree may have.
//!
//! The rules make it impossible for a manifest to write outside its own tree, without asking the file system: paths
//! consist of plain components, nothing lies below a file or a link, and a link goes up only at its beginning, no further
//! than the root. So a link's directory is always a real one, and each link ends inside by induction.

/// Longest path or link target, in bytes (Linux' PATH_MAX).
pub(crate) const PATH_BYTES_MAX: usize = 4096;
/// Longest component, in bytes (Linux' NAME_MAX).
const COMPONENT_BYTES_MAX: usize = 255;

/// Why the path may not be in a tree; `None` if it may.
pub(crate) fn refuse_path(path: &str) -> Option<&'static str> {
    if path.len() > PATH_BYTES_MAX {
        return Some("the path is longer than 4096 bytes");
    }
    if path.starts_with('/') {
        return Some("the path is absolute");
    }
    path.split('/').find_map(refuse_component)
}

fn refuse_component(component: &str) -> Option<&'static str> {
    match component {
        "" => Some("the path has an empty component"),
        "." | ".." => Some("the path has a '.' or '..' component"),
        _ if component.len() > COMPONENT_BYTES_MAX => Some("a component is longer than 255 bytes"),
        _ if component.contains('\0') => Some("the path has a NUL byte"),
        _ => None,
    }
}

/// Why a link at `path` may not point to `target`; `None` if it may.
pub(crate) fn refuse_link(path: &str, target: &str) -> Option<&'static str> {
    if target.is_empty() || target.len() > PATH_BYTES_MAX || target.contains('\0') {
        return Some("the link's target is empty, longer than 4096 bytes, or has a NUL byte");
    }
    if target.starts_with('/') {
        return Some("the link is absolute; make it relative to its own directory");
    }
    let depth = path.matches('/').count();
    let ups = target.split('/').take_while(|component| *component == "..").count();
    if ups > depth {
        return Some("the link leaves the artifact");
    }
    if target.split('/').skip(ups).any(|component| component == "..") {
        return Some("the link goes up after it went down; write its target without 'x/..'");
    }
    None
}

/// Checks that paths come in strictly rising order of their bytes and that none lies below another.
#[derive(Default)]
pub(crate) struct PathOrder {
    /// Earlier paths of which the latest is a textual continuation, shortest first.
    prefixes: Vec<Box<str>>,
}

impl PathOrder {
    pub(crate) fn accept(&mut self, path: &str) -> Result<(), &'static str> {
        if self.prefixes.last().is_some_and(|last| path.as_bytes() <= last.as_bytes()) {
            return Err("paths are not sorted, or one occurs twice");
        }
        self.prefixes.retain(|earlier| path.starts_with(&**earlier));
        if self.prefixes.iter().any(|earlier| path.as_bytes().get(earlier.len()) == Some(&b'/')) {
            return Err("the path lies below a file or a link");
        }
        self.prefixes.push(path.into());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_stay_inside() {
        for bad in
            ["", "/", "/etc", "..", "../a", "a/../b", "a//b", "a/", "./a", "a\0b", &"a".repeat(256), &"a/".repeat(2100)]
        {
            assert!(refuse_path(bad).is_some(), "{bad:?}");
        }
        for good in ["a", "a/b", "...", "a..b", "ä/ö ü", "-", "a\\b"] {
            assert_eq!(refuse_path(good), None, "{good:?}");
        }
    }

    #[test]
    fn links_stay_inside() {
        for (path, target) in [
            ("a", ".."),
            ("a/b", "../.."),
            ("a", "/etc"),
            ("a", ""),
            ("a/b", "c/../d"),
            ("a", "b\0"),
            ("a", "b/../../.."),
        ] {
            assert!(refuse_link(path, target).is_some(), "{path} -> {target}");
        }
        for (path, target) in
            [("a", "b"), ("a/b", ".."), ("a/b", "../c/d"), ("a", "."), ("a/b/c", "../../d"), ("a", "./b")]
        {
            assert_eq!(refuse_link(path, target), None, "{path} -> {target}");
        }
    }

    #[test]
    fn order_is_by_bytes_and_nothing_lies_below_a_file() {
        let run = |paths: &[&str]| {
            let mut order = PathOrder::default();
            paths.iter().try_for_each(|path| order.accept(path))
        };
        run(&["a", "a-b", "a.c", "aa", "b/c", "b/d", "b0"]).expect("sorted");
        run(&["b", "a"]).expect_err("unsorted");
        run(&["a", "a"]).expect_err("twice");
        run(&["a", "a/b"]).expect_err("below");
        run(&["a", "a-b", "a-b.c", "a/b"]).expect_err("below, with others between");
    }
}
