//! Pages: limits, and cursors that hold their place while rows are added.

use std::{fmt::Display, str::FromStr};

use longshore_schemas::{
    Timestamp,
    http::{PAGE_ITEMS_DEFAULT, PAGE_ITEMS_MAX, Page},
    read::ReadError,
};

/// Rows that one query looks at per partition or queue, for filters that no index serves. A page may then be short, or
/// even empty, and still have a next one.
pub(super) const ROWS_MAX: usize = 20_000;

pub(super) fn limit(asked: Option<u32>) -> Result<usize, ReadError> {
    match asked.unwrap_or(PAGE_ITEMS_DEFAULT) {
        limit @ 1..=PAGE_ITEMS_MAX => Ok(limit as usize),
        limit => Err(ReadError::Invalid(format!("limit: {limit} is not within 1 to {PAGE_ITEMS_MAX}"))),
    }
}

fn invalid(after: &str) -> ReadError {
    ReadError::Invalid(format!("after: {after:?} is not what a page of this list gave as `next`"))
}

/// A place in a list that is newest first: what comes after it is less than it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Cursor<I> {
    pub(super) at: Timestamp,
    pub(super) id: I,
}

impl<I: FromStr + Display> Cursor<I> {
    pub(super) fn parse(after: Option<&str>) -> Result<Option<Self>, ReadError> {
        let Some(after) = after else { return Ok(None) };
        let (millis, id) = after.split_once('.').ok_or_else(|| invalid(after))?;
        let at = Timestamp(millis.parse().map_err(|_| invalid(after))?);
        Ok(Some(Self { at, id: id.parse().map_err(|_| invalid(after))? }))
    }

    fn to_text(&self) -> String {
        format!("{}.{}", self.at.millis(), self.id)
    }
}

/// What one partition or queue contributes to a page.
pub(super) struct Part<I, T> {
    /// Newest first.
    pub(super) rows: Vec<(Cursor<I>, T)>,
    /// Where looking ended, if there may be more.
    pub(super) unread: Option<Cursor<I>>,
}

/// Merges the parts to one page, newest first. What lies behind a place that a part did not look beyond is left for the
/// next page, so that nothing is skipped.
pub(super) fn merge<I: Ord + Clone + FromStr + Display, T>(parts: Vec<Part<I, T>>, limit: usize) -> Page<T> {
    let horizon = parts.iter().filter_map(|part| part.unread.clone()).max();
    let mut rows: Vec<_> = parts.into_iter().flat_map(|part| part.rows).collect();
    rows.sort_by(|a, b| b.0.cmp(&a.0));
    if let Some(horizon) = &horizon {
        rows.retain(|(cursor, _)| cursor >= horizon);
    }
    let next = if rows.len() > limit { rows.get(limit - 1).map(|(cursor, _)| cursor.clone()) } else { horizon };
    rows.truncate(limit);
    Page { items: rows.into_iter().map(|(_, item)| item).collect(), next: next.map(|next| next.to_text()) }
}

/// Parses a cursor of three parts: `a/b/c`.
pub(super) fn parse_triple<A: FromStr, B: FromStr, C: FromStr>(
    after: Option<&str>,
) -> Result<Option<(A, B, C)>, ReadError> {
    let Some(after) = after else { return Ok(None) };
    let parse = || {
        let (a, rest) = after.split_once('/')?;
        let (b, c) = rest.split_once('/')?;
        Some((a.parse().ok()?, b.parse().ok()?, c.parse().ok()?))
    };
    parse().map(Some).ok_or_else(|| invalid(after))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(rows: &[i64], unread: Option<i64>) -> Part<u64, i64> {
        let cursor = |at: i64| Cursor { at: Timestamp(at), id: 0 };
        Part { rows: rows.iter().map(|at| (cursor(*at), *at)).collect(), unread: unread.map(cursor) }
    }

    #[test]
    fn parts_merge_newest_first_and_skip_nothing() {
        // Parts, limit, items, next.
        type Case = (Vec<Part<u64, i64>>, usize, Vec<i64>, Option<&'static str>);
        let table: Vec<Case> = vec![
            (vec![part(&[9, 5], None), part(&[7], None)], 5, vec![9, 7, 5], None),
            (vec![part(&[9, 5], None), part(&[7], None)], 2, vec![9, 7], Some("7.0")),
            (vec![part(&[9, 5], None), part(&[7], None)], 3, vec![9, 7, 5], None),
            // The second part was looked at only down to 6: 5 may not come before what it has below.
            (vec![part(&[9, 5], None), part(&[7], Some(6))], 5, vec![9, 7], Some("6.0")),
            (vec![part(&[], Some(3)), part(&[], None)], 5, vec![], Some("3.0")),
            (vec![], 5, vec![], None),
        ];
        for (parts, limit, items, next) in table {
            let page = merge(parts, limit);
            assert_eq!((page.items, page.next.as_deref()), (items, next));
        }
    }

    #[test]
    fn cursors_that_no_page_gave_are_refused() {
        for bad in ["", "5", "x.1", "5.x"] {
            Cursor::<u64>::parse(Some(bad)).expect_err(bad);
        }
        let cursor = Cursor { at: Timestamp(-5), id: 7u64 };
        assert_eq!(Cursor::parse(Some(&cursor.to_text())).expect("valid"), Some(cursor));
        for bad in [0, 1001] {
            limit(Some(bad)).expect_err("out of range");
        }
        assert_eq!(limit(None).expect("valid"), 100);
    }
}
