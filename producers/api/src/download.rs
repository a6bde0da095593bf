//! `GET /v1/artifacts/{artifact}/files/{path}`: a file's bytes, whole or a range, put together from packs.
//!
//! ```text
//! range ─▶ stretches of packs ──▶ GET, 4 ahead ──▶ unpack, verify ──▶ body      one MiB or so each
//! ```
//!
//! Every chunk is verified before a byte of it is sent. One that is wrong, or cannot be read after several tries, ends the
//! connection before the answer is whole, which clients notice by its length: there are no wrong bytes. Nothing is read before the
//! client takes it, but for the few stretches ahead, so a download costs some 8 MiB however slow its client is. There is a gate for
//! downloads, so that they leave room for everything else this process does; whole artifacts are better fetched as packs.

use std::{
    io,
    ops::Range,
    sync::{Arc, LazyLock},
    time::Duration,
};

use axum::{
    body::Body,
    extract::State,
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures::{Stream, StreamExt, stream};
use longshore_artifact::{Entry, FileRef, Index, Stretch, Stretches, pack_key};
use longshore_schemas::ArtifactId;
use longshore_service::{limits::Pass, metrics::Counters, retry::Backoff};

use crate::{
    Shared,
    extract::{App, Params},
    files::no_path,
    problem::{Answer, Failure},
    reads::known_artifact,
};

/// Stretches that are read before the client has taken the ones before them.
const AHEAD: usize = 4;
/// Tries of one stretch.
const TRIES: u32 = 4;
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(2);
/// An artifact never changes, and what of it a token may see is the token's business.
const CACHE: &str = "private, max-age=31536000, immutable";

static SENT_BYTES: LazyLock<Counters<0>> =
    LazyLock::new(|| Counters::new("longshore_api_download_bytes", "Bytes of artifacts' files, sent by the API", []));

/// `GET /v1/artifacts/{artifact}/files/{path}`
pub(crate) async fn file(
    State(shared): App,
    Params((artifact, path)): Params<(ArtifactId, String)>,
    headers: HeaderMap,
) -> Answer {
    known_artifact(&shared, &artifact)?;
    let index = shared.indexes.get(&shared, &artifact).await?;
    let file = match index.manifest.find(&path) {
        Some(Entry::File(file)) => file.clone(),
        Some(Entry::Link { path, target }) => return Ok(redirect(&artifact, path, target)),
        Some(Entry::Directory { .. }) => return Err(folder(&path)),
        None if index.manifest.under(&path).is_empty() => return Err(no_path(&artifact, &path)),
        None => return Err(folder(&path)),
    };
    let tag = entity_tag(&index, &file);
    if matches(&headers, header::IF_NONE_MATCH, &tag) {
        return Ok((
            StatusCode::NOT_MODIFIED,
            [(header::ETAG, tag), (header::CACHE_CONTROL, HeaderValue::from_static(CACHE))],
        )
            .into_response());
    }
    let is_same = !headers.contains_key(header::IF_RANGE) || matches(&headers, header::IF_RANGE, &tag);
    let asked = headers.get(header::RANGE).filter(|_| is_same).and_then(|range| range.to_str().ok());
    let range = match asked.and_then(|text| parse_range(text, file.bytes)) {
        Some(range) if range.is_empty() => return Ok(no_range(&path, &file)),
        range => range,
    };
    let pass = shared.gates.downloads.enter().map_err(|full| Failure::full(&full))?;
    let whole = 0..file.bytes;
    let sent = range.clone().unwrap_or(whole);
    let mut response = Response::new(Body::from_stream(body(shared, index, &file, sent.clone(), pass)));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(sent.end - sent.start));
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(header::CONTENT_DISPOSITION, disposition(&path));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static(CACHE));
    headers.insert(header::ETAG, tag);
    if let Some(Range { start, end }) = range {
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
        let content = format!("bytes {start}-{}/{}", end - 1, file.bytes);
        response.headers_mut().insert(header::CONTENT_RANGE, text_value(&content));
    }
    Ok(response)
}

fn folder(path: &str) -> Failure {
    Failure::invalid(format!("{path:?} is a folder: GET …/files?under={path} lists what it holds"))
}

fn no_range(path: &str, file: &FileRef) -> Response {
    let detail = format!("{path:?} has {} bytes: ask for a range that begins before its end", file.bytes);
    let mut response = Failure::no_range(detail).into_response();
    response.headers_mut().insert(header::CONTENT_RANGE, text_value(&format!("bytes */{}", file.bytes)));
    response
}

/// To what a link points to, which is in the tree.
fn redirect(artifact: &ArtifactId, path: &str, target: &str) -> Response {
    let mut parts: Vec<&str> = path.split('/').collect();
    parts.pop();
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    let target: Vec<_> = parts.into_iter().map(escaped).collect();
    let location = format!("/v1/artifacts/{artifact}/files/{}", target.join("/"));
    (StatusCode::TEMPORARY_REDIRECT, [(header::LOCATION, text_value(&location))]).into_response()
}

/// A component as it stands in a URL or in a header's parameter.
fn escaped(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    let escape = |byte: u8| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") };
    text.bytes().map(escape).collect()
}

/// Of characters that are escaped where they must be.
fn text_value(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).unwrap_or(HeaderValue::from_static(""))
}

/// The name to save it under, for those who know only ASCII and for the others.
fn disposition(path: &str) -> HeaderValue {
    let name = path.rsplit('/').next().unwrap_or(path);
    let is_plain = |c: char| (c.is_ascii_graphic() || c == ' ') && !matches!(c, '"' | '\\');
    let ascii: String = name.chars().map(|c| if is_plain(c) { c } else { '_' }).collect();
    text_value(&format!("attachment; filename=\"{ascii}\"; filename*=UTF-8''{}", escaped(name)))
}

/// Strong: the name of the chunks that make up the file.
fn entity_tag(index: &Index, file: &FileRef) -> HeaderValue {
    text_value(&format!("\"{}\"", index.content_name(file)))
}

/// Whether a header names this tag, or any.
fn matches(headers: &HeaderMap, name: HeaderName, tag: &HeaderValue) -> bool {
    let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    let mut tags = values.flat_map(|value| value.split(',')).map(str::trim);
    tags.any(|found| found == "*" || found.as_bytes() == tag.as_bytes())
}

/// One range, as it is or as far as the file goes. An empty one cannot be satisfied. What is no range of bytes, or several, is not
/// looked at, as RFC 9110 allows: the whole is sent.
fn parse_range(text: &str, length: u64) -> Option<Range<u64>> {
    let (first, last) = text.strip_prefix("bytes=")?.trim().split_once('-')?;
    let number = |text: &str| {
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        // One that is larger than any file is still a number.
        digits.then(|| text.parse::<u64>().unwrap_or(u64::MAX))
    };
    if first.is_empty() {
        let count = number(last)?;
        return Some(length.saturating_sub(count)..length);
    }
    let first = number(first)?;
    let last = if last.is_empty() { u64::MAX } else { number(last)? };
    if last < first {
        return None;
    }
    Some(first.min(length)..length.min(last.saturating_add(1)))
}

/// The bytes of a range of the file. The stream holds the pass.
fn body(
    shared: Arc<Shared>,
    index: Arc<Index>,
    file: &FileRef,
    range: Range<u64>,
    pass: Pass,
) -> impl Stream<Item = io::Result<Bytes>> + use<> {
    let (stretches, first) = Stretches::new(index.clone(), file, &range);
    let (mut skip, mut left) = (range.start - first, range.end - range.start);
    let stop = shared.stop.clone();
    let fetch = move |stretch| read(shared.clone(), index.clone(), stretch);
    let pieces = stream::iter(stretches).map(fetch).buffered(AHEAD).flat_map(|pieces| match pieces {
        Ok(pieces) => stream::iter(pieces.into_iter().map(Ok).collect::<Vec<_>>()),
        Err(error) => stream::iter(vec![Err(error)]),
    });
    let trimmed = pieces.map(move |piece: io::Result<Bytes>| -> io::Result<Bytes> {
        let _held = &pass;
        let piece = piece?;
        let before = skip.min(piece.len() as u64);
        let count = left.min(piece.len() as u64 - before);
        let (from, to) = (before as usize, (before + count) as usize);
        (skip, left) = (skip - before, left - count);
        SENT_BYTES.count([], count);
        Ok(piece.slice(from..to))
    });
    trimmed.take_until(stop.cancelled_owned())
}

/// What a stretch becomes. Another try may find what was only wrong on its way here.
async fn read(shared: Arc<Shared>, index: Arc<Index>, stretch: Stretch) -> io::Result<Vec<Bytes>> {
    let mut backoff = Backoff::new(RETRY_FIRST, RETRY_MAX);
    loop {
        let error = match try_read(&shared, &index, &stretch).await {
            Ok(pieces) => return Ok(pieces),
            Err(error) => error,
        };
        let wait = backoff.next_wait(&mut rand::rng());
        let (artifact, pack, failures) = (index.root.artifact, stretch.pack.pack, backoff.failures());
        if failures == TRIES {
            tracing::error!(%artifact, %pack, %error, "a download ends early: a pack cannot be read as it was stored");
            return Err(error);
        }
        tracing::warn!(%artifact, %pack, %error, failures, "a pack could not be read for a download; it is tried again");
        tokio::time::sleep(wait).await;
    }
}

async fn try_read(shared: &Shared, index: &Arc<Index>, stretch: &Stretch) -> io::Result<Vec<Bytes>> {
    let length = usize::try_from(stretch.bytes).map_err(io::Error::other)?;
    let stored = shared.bucket.get_range(&pack_key(&stretch.pack.pack), stretch.offset, length).await;
    let (stored, index, stretch) = (stored.map_err(io::Error::other)?, index.clone(), stretch.clone());
    let unpacked = tokio::task::spawn_blocking(move || index.unpack(&stretch, &stored)).await;
    unpacked.map_err(io::Error::other)?.map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_as_http_has_them() {
        let table = [
            ("bytes=0-0", Some(0..1)),
            ("bytes=0-99", Some(0..100)),
            ("bytes=10-1000", Some(10..100)),
            ("bytes=99-", Some(99..100)),
            ("bytes=-1", Some(99..100)),
            ("bytes=-1000", Some(0..100)),
            ("bytes=5-99999999999999999999999", Some(5..100)),
            // Not to be satisfied.
            ("bytes=100-", Some(100..100)),
            ("bytes=100-200", Some(100..100)),
            ("bytes=-0", Some(100..100)),
            // Not looked at.
            ("bytes=2-1", None),
            ("bytes=0-1,5-6", None),
            ("bytes=a-b", None),
            ("bytes=-", None),
            ("bytes=+1-2", None),
            ("chunks=0-1", None),
            ("", None),
        ];
        for (text, expected) in table {
            assert_eq!(parse_range(text, 100), expected, "{text}");
        }
        assert_eq!(parse_range("bytes=0-", 0), Some(0..0), "an empty file has no range");
    }

    #[test]
    fn names_survive_headers() {
        let header = disposition("a/b/Über \"x\".txt");
        let expected = r#"attachment; filename="_ber _x_.txt"; filename*=UTF-8''%C3%9Cber%20%22x%22.txt"#;
        assert_eq!(header.to_str().expect("ASCII"), expected);
    }

    #[test]
    fn links_lead_to_what_they_point_to() {
        let artifact = ArtifactId::of(b"a");
        for (path, target, expected) in [("a/b/c", "../d e", "a/d%20e"), ("a", "b", "b"), ("x/y", "./z/./w", "x/z/w")] {
            let response = redirect(&artifact, path, target);
            let location = response.headers()[header::LOCATION].to_str().expect("ASCII").to_owned();
            assert_eq!(location, format!("/v1/artifacts/{artifact}/files/{expected}"));
        }
    }
}
