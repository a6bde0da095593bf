//! `longshore artifact ls`

use longshore_schemas::http::{FileKind, FileView, FilesQuery, FilesView, PAGE_ITEMS_MAX};

use super::Context;
use crate::{args::LsArgs, error::Error, output, output::Format};

/// Prints page by page: a tree may have millions of files.
pub(super) async fn list(context: &Context, args: &LsArgs) -> Result<(), Error> {
    let artifact = context.find_artifact(&args.artifact.artifact).await?.to_string();
    let mut query = FilesQuery { under: args.path.clone(), after: None, limit: Some(PAGE_ITEMS_MAX) };
    loop {
        let call = context.client.get(&["artifacts", &artifact, "files"]).query(&query);
        let FilesView { page, .. } = call.fetch().await?;
        let mut lines = String::new();
        for file in &page.items {
            lines += &match context.format {
                Format::Json => serde_json::to_string(file).map_err(|error| Error::Other(error.into()))?,
                Format::Table if args.long => long(file),
                Format::Table => file.path.clone(),
            };
            lines.push('\n');
        }
        output::raw(lines.as_bytes())?;
        query.after = page.next;
        if query.after.is_none() {
            return Ok(());
        }
    }
}

/// `-rwxr-xr-x    12.5 MiB  bin/web`
fn long(file: &FileView) -> String {
    let FileView { path, kind, mode, size_bytes, target } = file;
    let mode = mode.as_deref().map_or_else(|| "rwxrwxrwx".to_owned(), permissions);
    match kind {
        FileKind::File => format!("-{mode} {:>11}  {path}", output::size(*size_bytes)),
        FileKind::Link => format!("l{mode} {:>11}  {path} -> {}", "-", target.as_deref().unwrap_or_default()),
        FileKind::Directory => format!("d{mode} {:>11}  {path}/", "-"),
    }
}

/// Octal digits as letters.
pub(super) fn permissions(octal: &str) -> String {
    let letters = |digit: char| {
        let bits = digit.to_digit(8).unwrap_or(0);
        [(4, 'r'), (2, 'w'), (1, 'x')].map(|(bit, letter)| if bits & bit == 0 { '-' } else { letter })
    };
    octal.chars().flat_map(letters).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_read_as_those_of_ls() {
        let file = |kind, mode: Option<&str>, target: Option<&str>| FileView {
            path: "bin/web".to_owned(),
            kind,
            mode: mode.map(str::to_owned),
            size_bytes: 2048,
            target: target.map(str::to_owned),
        };
        assert_eq!(long(&file(FileKind::File, Some("750"), None)), "-rwxr-x---     2.0 KiB  bin/web");
        assert_eq!(long(&file(FileKind::Link, None, Some("../x"))), "lrwxrwxrwx           -  bin/web -> ../x");
        assert_eq!(long(&file(FileKind::Directory, None, None)), "drwxrwxrwx           -  bin/web/");
    }
}
