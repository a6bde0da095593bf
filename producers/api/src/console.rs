//! The console: files that were built into the binary, or a page that says why there are none.

use axum::{
    body::Body,
    http::{HeaderValue, Method, StatusCode, Uri, header},
    response::{IntoResponse, Response},
};

use crate::problem::Failure;

// FILES: &[(path, bytes)], made by build.rs.
include!(concat!(env!("OUT_DIR"), "/console.rs"));

/// The console calls the API it came from and nothing else.
const CONTENT_SECURITY_POLICY: &str =
    "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; frame-ancestors 'none'";

/// What no route took: a file of the console, or 404.
pub(crate) async fn serve(method: Method, uri: Uri) -> Response {
    let path = match uri.path() {
        "/" => "/index.html",
        path => path,
    };
    let Some((path, bytes)) = FILES.iter().find(|(name, _)| *name == path) else {
        return Failure::no_route(format!("{method} {} is not part of the API: it is under /v1", uri.path()))
            .into_response();
    };
    if !matches!(method, Method::GET | Method::HEAD) {
        return Failure::wrong_method(format!("{path} can be read with GET and nothing else")).into_response();
    }
    file(path, bytes)
}

fn file(path: &str, bytes: &'static [u8]) -> Response {
    let mut response = (StatusCode::OK, Body::from(bytes)).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type(path)));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(CONTENT_SECURITY_POLICY));
    // What lies in assets/ has its hash in its name.
    let for_ever = path.starts_with("/assets/");
    let cache = if for_ever { "public, max-age=31536000, immutable" } else { "no-cache" };
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static(cache));
    response
}

fn content_type(path: &str) -> &'static str {
    match path.rsplit_once('.').map_or("", |(_, extension)| extension) {
        "html" => "text/html; charset=utf-8",
        "js" | "mjs" => "text/javascript; charset=utf-8",
        "css" => "text/css; charset=utf-8",
        "json" | "map" => "application/json",
        "svg" => "image/svg+xml",
        "png" => "image/png",
        "ico" => "image/x-icon",
        "woff2" => "font/woff2",
        "txt" => "text/plain; charset=utf-8",
        _ => "application/octet-stream",
    }
}
