//! Replacing a file so that a crash at any point leaves the old text or the new one.
//!
//! The text is written to `.NAME.new` beside the file and synced; a rename, which is atomic, puts it in
//! place; then the directory is synced, so that the rename lasts (rename(2), fsync(2)). What a crash leaves
//! of `.NAME.new` is replaced by the next write.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, fchown};
use std::path::{Path, PathBuf};

/// Replaces the text of a file. Its mode and owner stay; of a symbolic link the target is replaced. A file that does not exist is made with mode 0644 less the umask.
///
/// # Errors
/// Whatever the file system says; the old text is then still there.
pub fn write_atomically(path: &Path, text: &str) -> io::Result<()> {
    replace(path, text, |_| Ok(()))
}

/// What is about to happen, for tests that fail or die there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Create,
    Write,
    Sync,
    Rename,
    SyncDirectory,
}

fn replace(path: &Path, text: &str, before: impl Fn(Step) -> io::Result<()>) -> io::Result<()> {
    let target = match fs::canonicalize(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => path.to_owned(),
        target => target?,
    };
    let (directory, temporary) = beside(&target)?;
    let written = before(Step::Create).and_then(|()| create(&temporary, &target)).and_then(|mut file| {
        before(Step::Write)?;
        file.write_all(text.as_bytes())?;
        before(Step::Sync)?;
        file.sync_all()?;
        before(Step::Rename)?;
        fs::rename(&temporary, &target)
    });
    if let Err(error) = written {
        // Nobody looks for it, and the next write replaces it: not worth an error of its own.
        let _ = fs::remove_file(&temporary);
        return Err(error);
    }
    before(Step::SyncDirectory)?;
    File::open(directory)?.sync_all()
}

/// The directory of a file, and the temporary file in it.
fn beside(target: &Path) -> io::Result<(PathBuf, PathBuf)> {
    let no_name =
        || io::Error::new(io::ErrorKind::InvalidInput, format!("{} names no file", target.display()));
    let name = target.file_name().ok_or_else(no_name)?.to_string_lossy();
    let directory = match target.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    };
    let temporary = directory.join(format!(".{name}.new"));
    Ok((directory, temporary))
}

/// An empty file with the mode and owner of `like`, if that exists.
fn create(temporary: &Path, like: &Path) -> io::Result<File> {
    match fs::remove_file(temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let new = |mode| OpenOptions::new().write(true).create_new(true).mode(mode).open(temporary);
    let old = match fs::metadata(like) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return new(0o644),
        old => old?,
    };
    let file = new(0o600)?;
    let made = file.metadata()?;
    if (made.uid(), made.gid()) != (old.uid(), old.gid()) {
        fchown(&file, Some(old.uid()), Some(old.gid()))?;
    }
    file.set_permissions(old.permissions())?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::process::Command;

    use super::*;

    const STEPS: [Step; 5] = [Step::Create, Step::Write, Step::Sync, Step::Rename, Step::SyncDirectory];

    fn directory_with(text: &str) -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("sluice.toml");
        fs::write(&path, text).unwrap();
        (directory, path)
    }

    fn names(directory: &Path) -> Vec<String> {
        let entries = fs::read_dir(directory).unwrap();
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into()).collect();
        names.sort();
        names
    }

    #[test]
    fn the_text_is_replaced_and_the_mode_and_owner_stay() {
        let (directory, path) = directory_with("old");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        // Only root may give a file away, and not in every namespace; without, the owner is our own.
        let _ = std::os::unix::fs::chown(&path, Some(65_534), Some(1));
        let before = fs::metadata(&path).unwrap();
        write_atomically(&path, "new").unwrap();
        let after = fs::metadata(&path).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "new");
        assert_eq!((after.mode(), after.uid(), after.gid()), (before.mode(), before.uid(), before.gid()));
        assert_ne!(after.ino(), before.ino());
        assert_eq!(names(directory.path()), ["sluice.toml"]);
    }

    #[test]
    fn a_new_file_is_made() {
        let directory = tempfile::tempdir().unwrap();
        write_atomically(&directory.path().join("sluice.toml"), "new").unwrap();
        assert_eq!(names(directory.path()), ["sluice.toml"]);
        let absent = directory.path().join("absent/sluice.toml");
        assert_eq!(write_atomically(&absent, "new").unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn a_symbolic_link_stays_one() {
        let (directory, path) = directory_with("old");
        let elsewhere = tempfile::tempdir().unwrap();
        let link = elsewhere.path().join("link.toml");
        symlink(&path, &link).unwrap();
        write_atomically(&link, "new").unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(fs::read_to_string(&path).unwrap(), "new");
        assert_eq!(
            (names(directory.path()), names(elsewhere.path())),
            (vec!["sluice.toml".into()], vec!["link.toml".into()])
        );
    }

    #[test]
    fn a_step_that_fails_leaves_the_old_text_and_nothing_else() {
        for failing in STEPS {
            let (directory, path) = directory_with("old");
            let fail = |step| if step == failing { Err(io::Error::other("no")) } else { Ok(()) };
            assert!(replace(&path, "new", fail).is_err(), "{failing:?}");
            let expected = if failing == Step::SyncDirectory { "new" } else { "old" };
            assert_eq!(fs::read_to_string(&path).unwrap(), expected, "{failing:?}");
            assert_eq!(names(directory.path()), ["sluice.toml"], "{failing:?}");
        }
    }

    /// This test runs itself as the process that dies.
    #[test]
    fn a_death_at_any_step_leaves_the_old_or_the_new_text() {
        const VICTIM: &str = "SLUICE_TEST_DIES_IN";
        if let Ok(victim) = std::env::var(VICTIM) {
            let (path, dying) = victim.split_once('=').unwrap();
            let die = |step| if format!("{step:?}") == dying { std::process::abort() } else { Ok(()) };
            replace(Path::new(path), "new", die).unwrap();
            panic!("no step {dying}");
        }
        for dying in STEPS {
            let (_directory, path) = directory_with("old");
            let name = "edit::atomic::tests::a_death_at_any_step_leaves_the_old_or_the_new_text";
            let victim = format!("{}={dying:?}", path.display());
            let mut itself = Command::new(std::env::current_exe().unwrap());
            let output = itself.args(["--exact", name]).env(VICTIM, victim).output().unwrap();
            assert_eq!(output.status.code(), None, "{dying:?} ends by a signal: {output:?}");
            let expected = if dying == Step::SyncDirectory { "new" } else { "old" };
            assert_eq!(fs::read_to_string(&path).unwrap(), expected, "{dying:?}");
            write_atomically(&path, "newer").unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), "newer", "{dying:?}");
        }
    }
}
