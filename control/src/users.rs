//! What users of listeners do, as status and metrics show it.

use std::collections::BTreeMap;

use ringweir_flow::snapshot::Listener;
use serde::{Deserialize, Serialize};

use crate::status::{ListenerStatus, align, bytes, header};

/// A user of a listener.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct UserStatus {
    /// Sessions open now.
    pub(crate) active: u64,
    /// Sessions that made a request, since the start.
    pub(crate) sessions: u64,
    /// Bytes from the user.
    pub(crate) bytes_up: u64,
    /// Bytes to the user.
    pub(crate) bytes_down: u64,
}

/// The users of a listener with the sums of their counters, by name.
pub(crate) fn of(listener: &Listener) -> BTreeMap<String, UserStatus> {
    let users = listener.user_counters.iter();
    users
        .map(|(name, counters)| {
            let status = UserStatus {
                active: counters.sum(|cell| &cell.active),
                sessions: counters.sum(|cell| &cell.sessions),
                bytes_up: counters.sum(|cell| &cell.bytes_up),
                bytes_down: counters.sum(|cell| &cell.bytes_down),
            };
            (name.to_string(), status)
        })
        .collect()
}

/// The users of all listeners, where there are any.
pub(crate) fn to_table(listeners: &[ListenerStatus], text: &mut String) {
    let mut rows = vec![header(["USER", "LISTENER", "ACTIVE", "SESSIONS", "UP", "DOWN"])];
    for listener in listeners {
        rows.extend(listener.users.iter().map(|(name, user)| {
            vec![
                name.clone(),
                listener.name.clone(),
                user.active.to_string(),
                user.sessions.to_string(),
                bytes(user.bytes_up),
                bytes(user.bytes_down),
            ]
        }));
    }
    if rows.len() > 1 {
        text.push('\n');
        align(&rows, text);
    }
}
