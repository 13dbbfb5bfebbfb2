//! The sessions of one worker, in pages that never move and are never given back: after warm-up a new session
//! allocates nothing here.

/// Names a session for as long as it lives; the generation tells the tenants of one slot apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct SessionId {
    pub(crate) slot: u32,
    pub(crate) generation: u32,
}

const PAGE: usize = 64;

#[derive(Debug)]
pub(crate) struct Sessions<T> {
    pages: Vec<Box<[Slot<T>]>>,
    free: Vec<u32>,
    live: usize,
}

#[derive(Debug)]
struct Slot<T> {
    generation: u32,
    tenant: Option<T>,
}

impl<T> Sessions<T> {
    pub(crate) fn new() -> Sessions<T> {
        Sessions { pages: Vec::new(), free: Vec::new(), live: 0 }
    }

    pub(crate) fn len(&self) -> usize {
        self.live
    }

    pub(crate) fn insert(&mut self, tenant: T) -> SessionId {
        if self.free.is_empty() {
            let first = (self.pages.len() * PAGE) as u32;
            self.pages.push((0..PAGE).map(|_| Slot { generation: 0, tenant: None }).collect());
            self.free.extend((first..first + PAGE as u32).rev());
        }
        let index = self.free.pop().unwrap_or_else(|| unreachable!("a page was just added"));
        self.live += 1;
        let slot = &mut self.pages[index as usize / PAGE][index as usize % PAGE];
        slot.tenant = Some(tenant);
        SessionId { slot: index, generation: slot.generation }
    }

    pub(crate) fn get_mut(&mut self, id: SessionId) -> Option<&mut T> {
        let slot = self.pages.get_mut(id.slot as usize / PAGE)?.get_mut(id.slot as usize % PAGE)?;
        if slot.generation == id.generation { slot.tenant.as_mut() } else { None }
    }

    /// Whoever lives in a slot now, for events of operations that keep the slot from being given to another.
    pub(crate) fn tenant_of(&mut self, slot: u32) -> Option<SessionId> {
        let index = slot;
        let slot = self.pages.get(slot as usize / PAGE)?.get(slot as usize % PAGE)?;
        slot.tenant.as_ref().map(|_| SessionId { slot: index, generation: slot.generation })
    }

    pub(crate) fn remove(&mut self, id: SessionId) -> Option<T> {
        let slot = self.pages.get_mut(id.slot as usize / PAGE)?.get_mut(id.slot as usize % PAGE)?;
        if slot.generation != id.generation {
            return None;
        }
        let tenant = slot.tenant.take()?;
        slot.generation = slot.generation.wrapping_add(1);
        self.free.push(id.slot);
        self.live -= 1;
        Some(tenant)
    }

    pub(crate) fn ids(&self) -> Vec<SessionId> {
        self.pages
            .iter()
            .flatten()
            .zip(0..)
            .filter(|(slot, _)| slot.tenant.is_some())
            .map(|(slot, index)| SessionId { slot: index, generation: slot.generation })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_is_used_again_under_another_name() {
        let mut sessions = Sessions::new();
        let first = sessions.insert("first");
        assert_eq!(sessions.remove(first), Some("first"));
        let second = sessions.insert("second");
        assert_eq!(second.slot, first.slot);
        assert_eq!(sessions.get_mut(first), None);
        assert_eq!(sessions.remove(first), None);
        assert_eq!(sessions.get_mut(second), Some(&mut "second"));
        assert_eq!(sessions.ids(), [second]);
        assert_eq!(sessions.len(), 1);
    }
}
