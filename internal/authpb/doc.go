// Package authpb has the messages of Envoy's external authorization service.
package authpb
