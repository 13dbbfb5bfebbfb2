//! What outlives the daemon: the operator's selections, in a small file.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// The selected members, by group.
pub(crate) type Selections = BTreeMap<Arc<str>, Arc<str>>;

#[derive(Debug, Default, Serialize, Deserialize)]
struct File {
    selected: BTreeMap<String, String>,
}

/// Reads what was selected before. A file that is not there is one of nothing; one that cannot be read is told of, and
/// the daemon serves without it: that it does not start would be worse.
pub(crate) fn load(path: &Path) -> Selections {
    let read = || -> Result<File, String> {
        match std::fs::read_to_string(path) {
            Ok(text) => serde_json::from_str(&text).map_err(|error| error.to_string()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(File::default()),
            Err(error) => Err(error.to_string()),
        }
    };
    match read() {
        Ok(file) => file.selected.into_iter().map(|(group, member)| (group.into(), member.into())).collect(),
        Err(error) => {
            let file = path.display();
            tracing::error!(%file, error, "selections cannot be read: groups begin with their first member");
            Selections::new()
        }
    }
}

/// Replaces the file whole.
///
/// # Errors
/// Whatever the system says.
pub(crate) fn save(path: &Path, selections: &Selections) -> io::Result<()> {
    let text = |name: &Arc<str>| name.to_string();
    let selected = selections.iter().map(|(group, member)| (text(group), text(member))).collect();
    let bytes = serde_json::to_vec_pretty(&File { selected })?;
    let aside = path.with_extension("new");
    std::fs::write(&aside, bytes)?;
    std::fs::rename(&aside, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selections_come_back_and_a_broken_file_is_survived() {
        let folder = std::env::temp_dir().join(format!("ringweir-state-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join("state.json");
        assert!(load(&path).is_empty());
        let selections = Selections::from([("exit".into(), "tokyo".into())]);
        save(&path, &selections).unwrap();
        save(&path, &selections).unwrap();
        assert_eq!(load(&path), selections);
        std::fs::write(&path, "{").unwrap();
        assert!(load(&path).is_empty());
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
