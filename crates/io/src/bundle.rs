//! Several files of one folder that appear together or not at all.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use kvwise_core::{Error, Result};

/// A file of a bundle.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BundleFile {
    /// Name inside the folder.
    pub name: &'static str,
    /// Content.
    pub text: String,
    /// Whether it is a program.
    pub executable: bool,
}

/// Writes every file into `folder`, which is made if it is missing.
///
/// The files are written into a temporary folder inside `folder` first and then moved under their names; if one cannot be
/// moved, those before it are taken back. Files that are there already are left alone unless `replace` is set.
///
/// # Errors
/// If a file is there already and `replace` is not set, if `folder` is a file, or if the disk refuses. What was there before
/// is then unchanged.
pub fn write(folder: &Path, files: &[BundleFile], replace: bool) -> Result<()> {
    let fail = |path: &Path, e: &io::Error| Error::io(format!("{}: cannot write: {e}", path.display()));
    if folder.exists() && !folder.is_dir() {
        return Err(Error::input(format!(
            "{} is a file, expected a folder",
            folder.display()
        )));
    }
    let there: Vec<&str> = files
        .iter()
        .filter(|f| folder.join(f.name).symlink_metadata().is_ok())
        .map(|f| f.name)
        .collect();
    if !there.is_empty() && !replace {
        return Err(
            Error::input(format!("{} has {} already", folder.display(), there.join(", ")))
                .hint("give --force to replace them, or another --output-dir"),
        );
    }
    let made = missing_ancestors(folder);
    fs::create_dir_all(folder).map_err(|e| fail(folder, &e))?;
    let stage = folder.join(format!(".kvwise.{}.tmp", std::process::id()));
    let result = staged(folder, &stage, files);
    let _ = fs::remove_dir_all(&stage);
    if result.is_err() {
        // Folders that were made for this and are empty again go too, the deepest first.
        for path in made.iter().rev() {
            let _ = fs::remove_dir(path);
        }
    }
    result.map_err(|(path, e)| fail(&path, &e))
}

/// Folders that do not exist yet, the outermost first.
fn missing_ancestors(folder: &Path) -> Vec<PathBuf> {
    let mut missing: Vec<PathBuf> = folder
        .ancestors()
        .take_while(|path| !path.as_os_str().is_empty() && !path.exists())
        .map(Path::to_path_buf)
        .collect();
    missing.reverse();
    missing
}

fn staged(folder: &Path, stage: &Path, files: &[BundleFile]) -> Result<(), (PathBuf, io::Error)> {
    let old = stage.join("old");
    fs::create_dir_all(&old).map_err(|e| (stage.to_owned(), e))?;
    for file in files {
        let path = stage.join(file.name);
        create(&path, file).map_err(|e| (path, e))?;
    }
    let mut done: Vec<&BundleFile> = Vec::new();
    for file in files {
        let target = folder.join(file.name);
        let moved = if target.symlink_metadata().is_ok() {
            fs::rename(&target, old.join(file.name))
        } else {
            Ok(())
        }
        .and_then(|()| fs::rename(stage.join(file.name), &target));
        if let Err(e) = moved {
            // Back to what was there: the files moved so far, and this one.
            for file in done.iter().chain(std::iter::once(&file)) {
                let (target, kept) = (folder.join(file.name), old.join(file.name));
                if kept.symlink_metadata().is_ok() {
                    let _ = fs::rename(kept, target);
                } else if done.contains(file) {
                    let _ = fs::remove_file(target);
                }
            }
            return Err((target, e));
        }
        done.push(file);
    }
    Ok(())
}

fn create(path: &Path, file: &BundleFile) -> io::Result<()> {
    fs::write(path, &file.text)?;
    #[cfg(unix)]
    if file.executable {
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(path, fs::Permissions::from_mode(0o755))?;
    }
    fs::File::open(path)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(text: &str) -> Vec<BundleFile> {
        ["a.sh", "b.yaml"]
            .map(|name| BundleFile {
                name,
                text: format!("{name} {text}"),
                executable: name == "a.sh",
            })
            .to_vec()
    }

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn files_are_replaced_only_when_asked_and_nothing_else_is_left() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("new").join("deep");
        write(&folder, &files("one"), false).unwrap();
        assert_eq!(names(&folder), ["a.sh", "b.yaml"]);
        let e = write(&folder, &files("two"), false).unwrap_err();
        assert!(e.to_string().contains("has a.sh, b.yaml already"), "{e}");
        assert_eq!(fs::read_to_string(folder.join("a.sh")).unwrap(), "a.sh one");
        write(&folder, &files("two"), true).unwrap();
        assert_eq!(fs::read_to_string(folder.join("a.sh")).unwrap(), "a.sh two");
        assert_eq!(names(&folder), ["a.sh", "b.yaml"]);
    }

    #[test]
    fn when_one_file_cannot_be_moved_the_others_are_as_before() {
        let root = tempfile::tempdir().unwrap();
        write(root.path(), &files("one"), false).unwrap();
        fs::remove_file(root.path().join("b.yaml")).unwrap();
        // The stage has a folder under the name of the second file's predecessor, so that it cannot be put aside.
        let stage = root.path().join("stage");
        fs::create_dir_all(stage.join("old").join("b.yaml").join("full")).unwrap();
        fs::write(root.path().join("b.yaml"), "mine").unwrap();
        assert!(staged(root.path(), &stage, &files("two")).is_err());
        assert_eq!(fs::read_to_string(root.path().join("a.sh")).unwrap(), "a.sh one");
    }

    #[cfg(unix)]
    #[test]
    fn programs_can_be_run_and_other_files_cannot() {
        use std::os::unix::fs::PermissionsExt;
        let root = tempfile::tempdir().unwrap();
        write(root.path(), &files("one"), false).unwrap();
        let mode = |name: &str| fs::metadata(root.path().join(name)).unwrap().permissions().mode() & 0o111;
        assert_eq!((mode("a.sh"), mode("b.yaml")), (0o111, 0));
    }

    #[test]
    fn a_file_in_the_place_of_the_folder_is_an_error() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("x");
        fs::write(&path, "").unwrap();
        assert!(
            write(&path, &files("one"), true)
                .unwrap_err()
                .to_string()
                .contains("is a file")
        );
    }
}
