//! The `sluice` command: `sluice run` is the daemon, every other verb talks to it.

fn main() -> std::process::ExitCode {
    control::cli::main()
}
