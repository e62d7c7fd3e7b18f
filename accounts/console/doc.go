// Package console is what an admin sees of Sluice: AI Service Accounts, the audit log, and the frame, sign-in and errors around them.
//
// Its pages are made on the server by html/template from typed structs, rendered to a buffer before the first byte goes
// out, and read and post without JavaScript; the one script makes dialogs modal, cuts pasted keys before they can reach a
// URL, and guards the one-time reveal. Everything a page does goes through [accounts.Store], as the admin API does.
//
// It promises:
//
//   - A raw key is in one answer only: that to the post which made it. It is in no URL, cookie, log line or second page; a
//     repeated post says that the key was shown already.
//   - A key pasted into a search or an address is cut to its prefix by a redirect before it reaches a query, a page or the log.
//   - Every page needs a session and the permission in its route; a missing one is named. Unknown, malformed and other
//     orgs' ids are 404. Posts from other origins are refused.
//   - No answer is stored by a cache, framed by another page, or may load or run anything that is not served from here.
//
// It fails by pages: 404, 403 and 500 say what happened, what is safe and what to do, with the request id that the log
// has; the cause of a 500 is in the log only.
package console
