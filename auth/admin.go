package auth

import "slices"

// A Permission opens a part of the console and of the admin API. A telemetry key has none.
type Permission string

// The permissions. SettingsIntegrationsUpdate opens AI Service Accounts, to read as to change; AIGovernanceView opens
// alerts, policy, explain, simulate and the audit log; AIPolicyAdmin drafts and activates policy.
const (
	SettingsIntegrationsUpdate Permission = "SETTINGS_INTEGRATIONS_UPDATE"
	AIGovernanceView           Permission = "AI_GOVERNANCE_VIEW"
	AIPolicyAdmin              Permission = "AI_POLICY_ADMIN"
)

// AllPermissions lists every permission, in the order in which pages and help texts show them.
func AllPermissions() []Permission {
	return []Permission{SettingsIntegrationsUpdate, AIGovernanceView, AIPolicyAdmin}
}

// ParsePermission reads a permission's exact name.
func ParsePermission(s string) (Permission, bool) {
	p := Permission(s)
	return p, slices.Contains(AllPermissions(), p)
}

// An Admin is who acts in the console or through the admin API. It is bound to one org: there is no admin of two.
type Admin struct {
	Org         string // the org's slug
	Actor       string // as the audit log names it: an e-mail address, or "token:" and the token's prefix
	Permissions []Permission
}

// Can reports whether the admin holds the permission.
func (a Admin) Can(p Permission) bool { return slices.Contains(a.Permissions, p) }
