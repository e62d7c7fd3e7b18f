// The console's own script. Every page reads and posts without it; with it, dialogs open over the page one is
// reading, keys are cut before they can reach a URL, and the one-time reveal guards itself.
"use strict";
(() => {
  const $ = (sel, from = document) => from.querySelector(sel);
  const all = (sel, from = document) => [...from.querySelectorAll(sel)];
  const on = (type, fn, opts) => document.addEventListener(type, fn, opts);

  // A key pasted anywhere is cut to its prefix: the rest never leaves this page. While one types, only a whole key is
  // cut, so that no half of it is taken for another word; before a form goes out, whatever is left of one.
  const wholeKey = /\b(f[spda][kt]_[0-9A-Za-z]{12})_[0-9A-Za-z]{49,}/g;
  const secretPart = /\b(f[spda][kt]_[0-9A-Za-z]{12})_[0-9A-Za-z]*/g;
  const cut = (input, expression) => {
    if (input.type === "password" || input.type === "hidden") return;
    const short = input.value.replace(expression, "$1");
    if (short !== input.value) input.value = short;
  };
  on("input", (e) => {
    if (!e.target.matches("input, textarea")) return;
    cut(e.target, /^insertFrom(Paste|Drop)/.test(e.inputType || "") ? secretPart : wholeKey);
  });
  on("submit", (e) => all("input, textarea", e.target).forEach((input) => cut(input, secretPart)), true);

  const say = (text, near) => {
    const dialog = near && near.closest("dialog");
    const region = (dialog && $("[data-say]", dialog)) || $("#toasts");
    if (region.dataset.say !== undefined) region.textContent = text;
    else {
      const p = document.createElement("p");
      p.className = "visually-hidden";
      p.textContent = text;
      region.append(p);
      setTimeout(() => p.remove(), 3000);
    }
  };

  // ── Copy ──
  const copy = async (text, source) => {
    try {
      await navigator.clipboard.writeText(text);
      return true;
    } catch {
      getSelection().selectAllChildren(source); // no clipboard outside a secure context: the old way
      return document.execCommand("copy");
    }
  };
  on("click", async (e) => {
    const button = e.target.closest("[data-copy]");
    if (!button) return;
    const source = document.getElementById(button.dataset.copy);
    const done = await copy(source.textContent, source);
    const label = $("[data-label]", button);
    const said = done ? "Copied" : "Press Ctrl+C to copy";
    if (label) {
      const before = label.dataset.label || label.textContent;
      label.dataset.label = before;
      label.textContent = said;
      setTimeout(() => { label.textContent = before; }, 2000);
    } else {
      const before = button.dataset.before || button.dataset.tip;
      button.dataset.before = before;
      button.dataset.tip = said;
      setTimeout(() => { button.dataset.tip = before; }, 2000);
    }
    say(said, button);
  });

  // ── Posting once, with progress ──
  on("submit", (e) => {
    const form = e.target;
    if (form.method !== "post" || e.defaultPrevented) return;
    if (form.dataset.busy) return e.preventDefault();
    form.dataset.busy = "1";
    const button = e.submitter || $("button:not([type=button])", form);
    if (!button) return;
    button.setAttribute("aria-busy", "true");
    if (button.dataset.progress) button.textContent = button.dataset.progress;
  });
  addEventListener("pageshow", (e) => { if (e.persisted) location.reload(); });

  // ── Dialogs ──
  // The server renders the dialog of a URL open; here it becomes modal. A link with data-overlay fetches its page and
  // takes only the dialog from it, so that the list below keeps its place.
  const overlay = $("#overlay");
  let opener = null;
  let here = location.pathname + location.search;
  const address = (how, state, url) => {
    history[how](state, "", url);
    here = location.pathname + location.search;
  };
  const modal = (dialog) => {
    dialog.removeAttribute("open");
    dialog.showModal();
    const first = $("[autofocus], [aria-invalid=true]", dialog);
    if (first) first.focus();
    wire(dialog);
  };
  const drop = () => {
    const dialog = $("dialog[data-modal]", overlay);
    if (!dialog) return;
    if (dialog.open) dialog.close();
    overlay.replaceChildren();
    const back = (opener && opener.isConnected && opener) || $(".head .button") || $("#main");
    opener = null;
    back.focus();
  };
  const closeOverlay = () => {
    const dialog = $("dialog[data-modal]", overlay);
    if (!dialog) return;
    if (history.state && history.state.overlay) return history.back();
    address("replaceState", null, dialog.dataset.modal);
    drop();
  };
  const part = { credentials: "same-origin", headers: { "Sluice-Part": "1" } }; // of a page: what it shows once is left for the next whole one
  const open = async (link) => {
    opener = link;
    link.setAttribute("aria-busy", "true");
    try {
      const answer = await fetch(link.href, part);
      const page = new DOMParser().parseFromString(await answer.text(), "text/html");
      const dialog = $("#overlay dialog[data-modal]", page);
      if (!answer.ok || answer.redirected || !dialog) throw new Error("no dialog");
      overlay.replaceChildren(document.adoptNode(dialog));
      address("pushState", { overlay: true }, link.href);
      modal(dialog);
    } catch {
      location.assign(link.href);
    } finally {
      link.removeAttribute("aria-busy");
    }
  };
  on("click", (e) => {
    const link = e.target.closest("a[data-overlay]");
    if (!link || e.button || e.ctrlKey || e.metaKey || e.shiftKey || e.altKey) return;
    e.preventDefault();
    if (link.getAttribute("aria-busy") !== "true") open(link);
  });
  on("click", (e) => {
    const close = e.target.closest("[data-close]");
    if (!close) return;
    const dialog = close.closest("dialog");
    if (!dialog || !dialog.open) return;
    e.preventDefault();
    if (dialog.hasAttribute("data-modal")) closeOverlay(); else dialog.close();
  });
  addEventListener("popstate", (e) => {
    if (here === location.pathname + location.search) return; // within the page
    here = location.pathname + location.search;
    if (e.state && e.state.overlay) return location.reload();
    if ($("dialog[data-modal]", overlay)) drop(); else location.reload();
  });

  // ── The one-time reveal ──
  const reveal = (dialog) => {
    const saved = $("[data-saved]", dialog);
    const done = $("[data-done]", dialog);
    const ask = $("#reveal-ask");
    const wipe = () => all("[data-secret]").forEach((el) => { el.textContent = "no longer shown"; });
    const warn = (e) => { if (!saved.checked) e.preventDefault(); };
    const finish = () => {
      removeEventListener("beforeunload", warn);
      wipe();
      if (ask.open) ask.close();
      dialog.close();
      overlay.replaceChildren();
      const row = $(`[data-account="${CSS.escape(dialog.dataset.reveal)}"] a`);
      (row || $("#main")).focus();
    };
    address("replaceState", null, dialog.dataset.modal); // a reload shows the list, not this answer again
    addEventListener("beforeunload", warn);
    addEventListener("pagehide", wipe);
    const arm = () => done.setAttribute("aria-disabled", String(!saved.checked));
    saved.addEventListener("change", arm);
    arm();
    done.form.noValidate = true;
    done.form.addEventListener("submit", (e) => {
      e.preventDefault();
      if (saved.checked) return finish();
      say("Tick “I have saved it” first.", dialog);
      saved.focus();
    });
    const leave = () => { if (saved.checked) finish(); else ask.showModal(); };
    dialog.addEventListener("keydown", (e) => {
      if (e.key !== "Escape" || ask.open) return;
      e.preventDefault();
      leave();
    });
    dialog.addEventListener("cancel", (e) => { e.preventDefault(); if (!ask.open) leave(); });
    $("[data-leave]", ask).addEventListener("click", finish);
  };

  // ── Waiting for the first event ──
  const waiting = (box) => {
    const text = $("[data-text]", box);
    const look = async () => {
      if (!box.isConnected) return;
      if (document.visibilityState === "visible") {
        try {
          const answer = await fetch(box.dataset.waiting, { credentials: "same-origin" });
          const { first_seen_at: at } = await answer.json();
          if (at) {
            box.classList.add("arrived");
            text.textContent = `First event received at ${at.slice(11, 19)} UTC`;
            return;
          }
          if (answer.status === 401 || answer.status === 403 || answer.status === 404) return;
        } catch { /* the next look may do better */ }
      }
      setTimeout(look, 1000);
    };
    look();
  };

  const wire = (from) => {
    all("[data-all]", from).forEach((label) => {
      const box = $("input", label);
      box.addEventListener("change", () => all("input[name=ids]").forEach((one) => { one.checked = box.checked; }));
    });
    all("[data-waiting]", from).forEach(waiting);
    if (from.matches && from.matches("dialog[data-modal]") && !from.hasAttribute("data-reveal")) {
      from.addEventListener("cancel", (e) => { if (e.target !== from) return; e.preventDefault(); closeOverlay(); });
    }
  };

  // ── Toasts: away after a while, unless one is at them ──
  const toast = $("[data-toast]");
  if (toast) {
    const away = () => {
      if (toast.matches(":hover") || toast.contains(document.activeElement)) return setTimeout(away, 2000);
      toast.remove();
    };
    setTimeout(away, $("form", toast) ? 20000 : 8000); // with a way back one gets the time to find it
  }
  on("click", (e) => { if (e.target.closest("[data-dismiss]")) toast.remove(); });

  // ── Menus close when one goes elsewhere ──
  on("click", (e) => all("details.menu[open]").forEach((m) => { if (!m.contains(e.target)) m.open = false; }));
  on("focusin", (e) => all("details.menu[open]").forEach((m) => { if (!m.contains(e.target)) m.open = false; }));
  on("keydown", (e) => {
    if (e.key !== "Escape") return;
    all("details.menu[open]").forEach((m) => { m.open = false; $("summary", m).focus(); });
  });

  // ── Rows: j and k go through them; after an action the one that took the place has the focus ──
  const rows = () => all("tbody tr").filter((row) => $("a.row", row));
  const move = (by) => {
    const list = rows();
    const now = list.indexOf(document.activeElement.closest("tr"));
    const next = list[Math.max(0, Math.min(list.length - 1, now < 0 ? 0 : now + by))];
    if (next) $("a.row", next).focus();
  };
  const remember = (row) => { try { sessionStorage.setItem("sluice-row", rows().indexOf(row)); } catch { /* then the focus starts anew */ } };
  try {
    const at = sessionStorage.getItem("sluice-row");
    sessionStorage.removeItem("sluice-row");
    const list = rows();
    if (at !== null && list.length) $("a.row", list[Math.min(Number(at), list.length - 1)]).focus();
  } catch { /* the same */ }

  // ── What arrives: put in its place where nobody is reading, else announced ──
  const live = $("#live[data-new]");
  if (live) {
    const refresh = async () => {
      const answer = await fetch(location.href, part);
      if (!answer.ok || answer.redirected) return location.reload();
      const page = new DOMParser().parseFromString(await answer.text(), "text/html");
      const fresh = $("#live", page);
      live.dataset.new = fresh.dataset.new || "";
      live.replaceChildren(...[...fresh.childNodes].map((n) => document.adoptNode(n)));
      const menu = $(".side nav", page);
      if (menu) $(".side nav").replaceChildren(...[...menu.childNodes].map((n) => document.adoptNode(n)));
      wire(live);
    };
    const reading = () => "announce" in live.dataset || scrollY > 8 || $("dialog[open]") || $("input[name=ids]:checked", live) || $("table:hover", live) || live.contains(document.activeElement);
    let told = 0;
    const look = async () => {
      try {
        if (document.visibilityState === "visible" && live.dataset.new) {
          const answer = await fetch(live.dataset.new, { credentials: "same-origin" });
          if (!answer.ok) return; // signed out, or the page is of another time
          const news = await answer.json();
          all("[data-unacknowledged]").forEach((el) => {
            el.textContent = news.unacknowledged;
            const count = el.closest(".count");
            if (count) count.hidden = news.unacknowledged === "0";
          });
          if (news.new && !reading()) {
            told = 0;
            await refresh();
          } else if (news.new !== told) {
            told = news.new;
            const box = $("[data-arrivals]", live);
            const button = document.createElement("button");
            button.type = "button";
            button.className = "button small primary";
            button.textContent = `${told} new signal${told === 1 ? "" : "s"}: show`;
            button.addEventListener("click", () => { told = 0; scrollTo(0, 0); refresh(); });
            box.replaceChildren(button);
            box.hidden = !told;
          }
        }
      } catch { /* the next look may do better */ }
      setTimeout(look, 500);
    };
    setTimeout(look, 500);
  }

  // ── Single-key shortcuts, which can be switched off ──
  const help = $("#shortcuts");
  const shortcutsOn = () => { try { return localStorage.getItem("sluice-shortcuts") !== "off"; } catch { return true; } };
  if (help) {
    const toggle = $("#shortcuts-on");
    toggle.checked = shortcutsOn();
    const button = $("[data-shortcuts]");
    button.addEventListener("click", () => help.showModal());
    const show = () => all("kbd[data-hint]").forEach((k) => { k.hidden = !shortcutsOn(); });
    show();
    toggle.addEventListener("change", () => {
      try { localStorage.setItem("sluice-shortcuts", toggle.checked ? "on" : "off"); } catch { /* private window */ }
      show();
    });
    on("keydown", (e) => {
      if (e.ctrlKey || e.metaKey || e.altKey || e.isComposing || e.defaultPrevented) return;
      if (e.target.matches("input:not([type=checkbox]), textarea, select, [contenteditable]") || !shortcutsOn()) return;
      const dialog = all("dialog:modal").pop();
      if (e.key === "?" && !dialog) { e.preventDefault(); return help.showModal(); }
      if ((e.key === "j" || e.key === "k") && !dialog) { e.preventDefault(); return move(e.key === "j" ? 1 : -1); }
      const target = all("[data-key]", dialog || document).find((el) => el.dataset.key === e.key && (dialog || !el.closest("dialog")));
      if (!target) return;
      e.preventDefault();
      if (target.form && target.form.id === "bulk") {
        const row = document.activeElement.closest("tr");
        const box = row && $("input[name=ids]", row);
        if (!$("input[name=ids]:checked", target.form)) {
          if (!box) return;
          box.checked = true;
        }
        if (row) remember(row);
      }
      if (target.matches("input")) { target.focus(); target.select(); } else target.click();
    });
  }

  // ── Deletions that not all edges have confirmed: asked for again meanwhile, and dismissed without leaving the page ──
  const bySelf = (box) => all("[data-auto]", box).forEach((el) => { el.hidden = false; });
  const shape = (box) => box.className + all(".deletion", box).map((d) => d.dataset.id + Boolean($("details", d))).join();
  const ask = async () => {
    const box = $("[data-pending]");
    if (!box) return;
    const answer = await fetch(box.dataset.pending, part);
    if (!answer.ok || answer.redirected) return; // signed out, or away: what is shown stays
    const fresh = $("[data-pending]", new DOMParser().parseFromString(await answer.text(), "text/html"));
    if (!fresh) return box.remove();
    bySelf(fresh);
    if (shape(fresh) === shape(box)) { // nothing that can have the focus goes, nor closes what was opened
      ["[data-how]", "summary", "ul"].forEach((sel) => {
        const now = all(sel, fresh);
        all(sel, box).forEach((el, i) => {
          if (el.innerHTML === now[i].innerHTML) return;
          el.innerHTML = now[i].innerHTML;
          if (sel === "[data-how]") say(el.textContent);
        });
      });
      return;
    }
    all("details", box).forEach((d) => { const now = $(`details[data-id="${d.dataset.id}"]`, fresh); if (now) now.open = d.open; });
    const held = box.contains(document.activeElement);
    box.className = fresh.className;
    box.ariaLabel = fresh.ariaLabel;
    box.replaceChildren(...fresh.childNodes);
    say(all("[data-how]", box).map((el) => el.textContent).join(" "));
    if (held) ($("summary, button, a", box) || $("#main")).focus();
  };
  if ($("[data-pending]")) {
    bySelf(document);
    setInterval(() => { if (document.visibilityState === "visible" && $("[data-pending].warning")) ask().catch(() => {}); }, 3000);
    on("click", (e) => { if (e.target.closest("[data-ask]")) { e.preventDefault(); ask().catch(() => location.reload()); } });
    on("submit", async (e) => {
      if (!e.target.closest("[data-pending]")) return;
      e.preventDefault();
      try {
        const answer = await fetch(e.target.action, { method: "POST", body: new URLSearchParams(new FormData(e.target)), ...part });
        if (!answer.ok) throw new Error("not dismissed");
        await ask();
      } catch { HTMLFormElement.prototype.submit.call(e.target); }
    });
  }

  // ── Relative times keep up ──
  const plural = (n, unit) => `${n} ${unit}${n === 1 ? "" : "s"} ago`;
  setInterval(() => all("time[title]").forEach((el) => {
    const minutes = Math.floor((Date.now() - Date.parse(el.dateTime)) / 60000);
    if (minutes >= 1 && minutes < 60) el.textContent = plural(minutes, "minute");
    else if (minutes >= 60 && minutes < 1440) el.textContent = plural(Math.floor(minutes / 60), "hour");
  }), 30000);

  // A one-time link is used up by posting; its secret leaves the address bar and the history at once.
  if ($("[data-forget-address]")) address("replaceState", null, location.pathname);

  wire(document);
  const dialog = $("dialog[data-modal]", overlay);
  if (dialog) {
    modal(dialog);
    if (dialog.hasAttribute("data-reveal")) reveal(dialog);
  }
})();
