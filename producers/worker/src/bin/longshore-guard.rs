//! The guard alone, for a worker that is used as a library. `longshore guard` is the same.

fn main() -> std::process::ExitCode {
    longshore_worker::guard::main()
}
